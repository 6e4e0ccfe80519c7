"""The generation loop: from prompts to ids, one step at a time, and the reason why each row ends.

`Engine` and `Rows` are the interface of an engine. Text is handled by text.py, through `stop`.

        prompts ──► prefill ──► logits ──► rules, draw ──► Token, End ──► caller
                                  ▲                          │
                                  └── step ◄── reorder ◄─────┘   ended rows leave the cache
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import array_api_compat
import numpy as np

from hanmo.errors import ConfigError, PromptError
from hanmo.generate import rules
from hanmo.generate.draw import check_seed, checked, choose, uniform
from hanmo.generate.rules import Array
from hanmo.generate.sampling import Sampling

PLAIN = Sampling()


class Rows(Protocol):
    """The key-value cache of the rows being generated."""

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row and return the logits [rows, vocab_size] of the next."""

    def reorder(self, rows: Sequence[int]) -> None:
        """Make new row i a copy of old row rows[i]; rows may be left out, repeated and permuted."""


class Engine(Protocol):
    """A model that computes the logits of the next id."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, and of columns of the logits."""

    @property
    def max_positions(self) -> int | None:
        """Maximum number of ids in a row, prompt included; None if unlimited."""

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Rows, Array]:
        """Process prompts, one per row, of any lengths; return the rows and the logits [rows, vocab_size].

        room: maximum number of ids that will be appended to a row.
        """


@runtime_checkable
class QueueingEngine(Engine, Protocol):
    """An engine on an asynchronous device: the next step is queued before the ids of the last are known.

    Its `Rows.step` also takes ids as an array on the device, negative in rows that could not choose one.
    """

    def send(self, numbers: Sequence[float]) -> Array:
        """Copy numbers to the device without waiting."""

    def fetch(self, ids: Array) -> Callable[[], list[int]]:
        """Start copying ids from the device; the function returned waits for that copy only."""


class LogProbs(NamedTuple):
    """Natural logarithms of the model's probabilities, before the sampling rules.

    id: of the id in the text.   top: (id, log-probability) of the likeliest ids, best first.
    """

    id: float
    top: tuple[tuple[int, float], ...]


class Token(NamedTuple):
    """An id was appended to a row; logprobs: if they were asked for."""

    row: int
    id: int
    logprobs: LogProbs | None = None


class End(NamedTuple):
    """A row has ended.

    reason: "end" after an end id, "length" at max_tokens, "context" at the model's last position, or what `stop`
    returned.
    """

    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The conditions on ids that end a row.

    max_tokens: maximum number of new ids, 1 or more; None is up to the model's last position.
    end_ids: end the row.   min_tokens: minimum number of new ids before one of them.
    Raises ConfigError if a number is out of range.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            rules.check_count("max_tokens", self.max_tokens)
        rules.check_count("min_tokens", self.min_tokens, least=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens is {self.min_tokens}, max_tokens {self.max_tokens}; "
                "expected min_tokens of at most max_tokens"
            )

    def reason(self, written: int, id: int, room: int, stop: Callable[[], str | None] | None) -> str | None:
        """Return why a row ends with its last id, None if it goes on.

        written: number of new ids.   room: its maximum.   stop: called unless the id is an end id.
        """
        if id in self.end_ids:
            return "end"
        if stop is not None and (reason := stop()):
            return reason
        if written == self.max_tokens:
            return "length"
        return "context" if written == room else None

    def apply(self, logits: Array, written: int) -> Array:
        """Mask the end ids while fewer than min_tokens are written."""
        return rules.banned(logits, self.end_ids) if self.end_ids and written < self.min_tokens else logits


UNLIMITED = Limits()


def sample(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int | Sequence[int],
    n: int = 1,
    first: int = 0,
    sampling: Sampling = PLAIN,
    limits: Limits = UNLIMITED,
    history: bool = True,
    stop: Callable[[int, int], str | None] | None = None,
) -> Iterator[Token | End]:
    """Generate n samples of every prompt and yield each id as it is chosen.

    Row p*n + k is sample number first + k of prompt p. Its draws depend on seed and sample number only: if an engine's
    logits of a row do not depend on the batch, neither do its samples. A prompt is processed once for all n.
    seed: one for all prompts, or one for each.
    history: whether the repetition rules include the prompt; False if it is the source of an encoder.
    stop: called with (row, id) after every id but an end id; a str ends the row and is the reason of its `End`.
    Raises, at the call, ConfigError for a setting and PromptError for a prompt that cannot be used.
    """
    rules.check_count("n", n)
    rules.check_count("first", first, least=0)
    seeds = seeds_of(seed, prompts)
    for prompt in prompts:
        check_prompt(engine, prompt)
    rooms = [room_behind(engine, prompt, limits) for prompt in prompts]
    rows = [
        _Row(source * n + k, source, list(prompt) if history else [], rooms[source], seeds[source], first + k)
        for source, prompt in enumerate(prompts)
        for k in range(n)
    ]
    return _generate(engine, prompts, rows, sampling, limits, stop)


def seeds_of(seed: int | Sequence[int], prompts: Sequence[object]) -> list[int]:
    """Return a seed per prompt, from one for all or one for each.

    Raises ConfigError for a seed out of range, or if there are not as many seeds as prompts.
    """
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(prompts)
    for each in seeds:
        check_seed(each)
    if len(seeds) != len(prompts):
        raise ConfigError(f"there are {len(seeds)} seeds and {len(prompts)} prompts; give one seed, or one a prompt")
    return seeds


def check_prompt(engine: Engine, prompt: Sequence[int]) -> None:
    """Raise PromptError if the engine cannot continue this prompt."""
    if not len(prompt):
        raise PromptError("the prompt is empty; give at least one token to write on from")
    if engine.max_positions is not None and len(prompt) > engine.max_positions:
        raise PromptError(
            f"the prompt has {len(prompt)} tokens, the model knows {engine.max_positions} positions; "
            "shorten it, or keep only its end with keep_last=True"
        )
    for place, id in enumerate(prompt):
        if not 0 <= id < engine.vocab_size:
            raise PromptError(
                f"id {id} at position {place} of the prompt is outside the model's ids 0 to {engine.vocab_size - 1}; "
                "the vocabulary file probably belongs to another model"
            )


def room_behind(engine: Engine, prompt: Sequence[int], limits: Limits) -> int:
    """Return how many ids can follow this prompt, by the model's positions and max_tokens.

    Raises ConfigError if neither is limited.
    """
    left = None if engine.max_positions is None else engine.max_positions - len(prompt)
    bounds = [bound for bound in (left, limits.max_tokens) if bound is not None]
    if not bounds:
        raise ConfigError("max_tokens is None and this model has no last position; give max_tokens")
    return min(bounds)


def keep_last(prompt: Sequence[int], max_positions: int | None, *, max_tokens: int | None = None) -> Sequence[int]:
    """Truncate a prompt longer than max_positions on the left, so that max_tokens fit after it.

    At least half of the positions remain for the prompt, and half of them if max_tokens is None.
    """
    if max_positions is None or len(prompt) <= max_positions:
        return prompt
    room = max_positions if max_tokens is None else max_tokens
    return prompt[-max(max_positions - room, (max_positions + 1) // 2) :]


def take_rows(logits: Array, rows: Sequence[int]) -> Array:
    """Return the logits of these rows, in this order; rows may be repeated."""
    xp = array_api_compat.array_namespace(logits)
    return xp.take(logits, xp.asarray(rows, device=array_api_compat.device(logits)), axis=0)


@dataclass
class _Row:
    number: int
    source: int  # the index of its prompt
    past: list[int]  # ids that the repetition rules see
    room: int  # maximum number of new ids
    seed: int
    sample: int


def _generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[_Row],
    sampling: Sampling,
    limits: Limits,
    stop: Callable[[int, int], str | None] | None,
) -> Iterator[Token | End]:
    yield from (End(row.number, "context") for row in rows if row.room == 0)
    live = [row for row in rows if row.room]
    if not live:
        return
    cache, logits = engine.prefill(prompts, room=max(row.room for row in live))
    sources = [row.source for row in live]
    if sources != list(range(len(prompts))):
        cache.reorder(sources)
        logits = take_rows(logits, sources)
    queue = engine if isinstance(engine, QueueingEngine) else None
    written = 0
    while True:
        scores = sampling.apply(limits.apply(logits, written), [row.past for row in live])
        draws = [uniform(row.seed, row.sample, written) for row in live]
        chosen = choose(scores, queue.send(draws) if queue else draws)
        fetched = queue.fetch(chosen) if queue else chosen.tolist
        written += 1
        if queue and written < max(row.room for row in live):
            logits = cache.step(chosen)  # discarded for a row that ends with this id
        ids = checked(fetched(), engine.vocab_size)
        kept = []
        for place, (row, id) in enumerate(zip(live, ids, strict=True)):
            row.past.append(id)
            reason = limits.reason(written, id, row.room, stop and partial(stop, row.number, id))
            yield Token(row.number, id)
            if reason is None:
                kept.append(place)
            else:
                yield End(row.number, reason)
        if not kept:
            return
        if len(kept) < len(live):
            cache.reorder(kept)
            logits = take_rows(logits, kept) if queue else logits
        live = [live[place] for place in kept]
        if not queue:
            logits = cache.step([ids[place] for place in kept])


def log_probs(logits: Array, ids: Sequence[int], top: int) -> list[LogProbs]:
    """Return the log-probability of ids[i] by logits[i] [vocab_size], and the `top` likeliest ids with theirs."""
    scores = rules.to_numpy(logits).astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    found = []
    for row, id in zip(scores, ids, strict=True):
        least = np.partition(row, len(row) - top)[len(row) - top] if top else np.inf
        best = sorted(np.flatnonzero(row >= least), key=lambda other: -row[other])[:top]
        found.append(LogProbs(float(row[id]), tuple((int(other), float(row[other])) for other in best)))
    return found
