"""The loop: prompts go in, ids come out one step at a time, each row ends for a stated reason.

Knows ids, the sampling settings and what it needs of an engine (`Engine`, `Rows`: all that an engine has to offer).
Does not know text: `stop` is asked after every id, and `text.py` answers.

        prompts ──► prefill ──► logits ──► rules, draw ──► Token, End ──► caller
                                  ▲                          │
                                  └── step ◄── reorder ◄─────┘   rows that ended leave the cache
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import array_api_compat

from hanmo.errors import ConfigError, PromptError
from hanmo.generate import rules
from hanmo.generate.draw import check_seed, checked, choose, uniform
from hanmo.generate.rules import Array
from hanmo.generate.sampling import Sampling

PLAIN = Sampling()


class Rows(Protocol):
    """What an engine remembers of the rows that are being written: its cache."""

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row and return the logits [rows, vocab] of what comes next."""

    def reorder(self, rows: Sequence[int]) -> None:
        """Make the new row i a copy of the old row rows[i]: rows may be left out, repeated and exchanged."""


class Engine(Protocol):
    """A model that continues ids; engines do not know of one another, nor of how ids are chosen."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, and of columns of the logits."""

    @property
    def max_positions(self) -> int | None:
        """The most ids, prompt and written together, that a row can hold; None if nothing limits them."""

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Rows, Array]:
        """Read prompts, of different lengths perhaps, one a row; return the rows and the logits [rows, vocab].

        room: the most ids that any row will be asked to append; no more memory than that is needed.
        """


@runtime_checkable
class QueueingEngine(Engine, Protocol):
    """An engine whose device works through a queue, and is asked for the next step before the last ids are known.

    Its `Rows.step` also takes ids as an array on the device, with ids below 0 in rows that could not choose one.
    """

    def send(self, numbers: Sequence[float]) -> Array:
        """Bring numbers to the device, waiting for nothing."""

    def fetch(self, ids: Array) -> Callable[[], list[int]]:
        """Begin to bring ids from the device; what is returned waits until they are there, and for nothing after."""


class Token(NamedTuple):
    """One id was written to one row."""

    row: int
    id: int


class End(NamedTuple):
    """Nothing more comes for this row, and why.

    "end": an end id was written.   "length": max_tokens are written.   "context": the row stands at the last position
    that the model knows.   Anything else is what `stop` answered.
    """

    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a row ends by its ids alone.

    max_tokens: the most ids to write, 1 or more; None leaves it to the model's last position.
    end_ids: a row ends after writing one of these.   min_tokens: no end id is chosen before so many are written.
    Raises ConfigError if a number is out of range.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers before anything is written."""
        if self.max_tokens is not None:
            rules.check_count("max_tokens", self.max_tokens)
        rules.check_count("min_tokens", self.min_tokens, least=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens is {self.min_tokens}, max_tokens {self.max_tokens}; "
                "expected min_tokens of at most max_tokens"
            )

    def reason(self, written: int, id: int) -> str | None:
        """Say why a row ends that has written so many ids, id last, if it does."""
        if id in self.end_ids:
            return "end"
        return "length" if written == self.max_tokens else None

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
    """Write n samples of every prompt and yield each id as it is chosen.

    Row p*n + k is sample number first + k of prompt p. Its draws depend on seed and sample number alone: where an
    engine gives a row the same logits in every batch, n samples are those that are written one by one with `first`.
    A prompt is read once, whatever n is.
    seed: one for all prompts, or one for each.
    history: whether the prompt counts for the repetition rules; False where it is the source of an encoder.
    stop: asked with (row, id) after every id but an end id; a word ends the row and becomes the reason of its `End`.
    Raises, before the first id, ConfigError for a setting and PromptError for a prompt that cannot be used.
    """
    rules.check_count("n", n)
    rules.check_count("first", first, least=0)
    seeds = seeds_of(seed, prompts)
    for prompt in prompts:
        check_prompt(engine, prompt)
    past = [list(prompt) if history else [] for prompt in prompts for _ in range(n)]
    room = [room_behind(engine, prompt, limits) for prompt in prompts for _ in range(n)]
    run = _Run(engine, limits, past, room, stop)
    chances = [(seeds[row // n], first + row % n) for row in range(len(past))]
    return _write(run, prompts, n, sampling, chances)


def seeds_of(seed: int | Sequence[int], prompts: Sequence[object]) -> list[int]:
    """Give each prompt its seed, from one for all or one for each.

    Raises ConfigError for a seed out of range, or a number of seeds other than that of the prompts.
    """
    if not isinstance(seed, Sequence):
        check_seed(seed)
        return [seed] * len(prompts)
    if len(seed) != len(prompts):
        raise ConfigError(f"there are {len(seed)} seeds and {len(prompts)} prompts; give one seed, or one a prompt")
    for each in seed:
        check_seed(each)
    return list(seed)


def check_prompt(engine: Engine, prompt: Sequence[int]) -> None:
    """Raise PromptError if the engine cannot continue this prompt, naming what is wrong with it."""
    if not len(prompt):
        raise PromptError("the prompt is empty; give at least one token to write on from")
    for place, id in enumerate(prompt):
        if not 0 <= id < engine.vocab_size:
            raise PromptError(
                f"id {id} at position {place} of the prompt is outside the model's ids 0 to {engine.vocab_size - 1}; "
                "the vocabulary file probably belongs to another model"
            )
    if engine.max_positions is not None and len(prompt) > engine.max_positions:
        raise PromptError(
            f"the prompt has {len(prompt)} tokens, the model knows {engine.max_positions} positions; "
            "shorten it, or keep only its end with keep_last=True"
        )


def room_behind(engine: Engine, prompt: Sequence[int], limits: Limits) -> int:
    """Return how many ids can be written after this prompt: what the model's positions and max_tokens leave.

    Raises ConfigError if neither would ever end a row.
    """
    bounds = [] if engine.max_positions is None else [engine.max_positions - len(prompt)]
    bounds += [] if limits.max_tokens is None else [limits.max_tokens]
    if not bounds:
        raise ConfigError("max_tokens is None and this model has no last position; give max_tokens")
    return min(bounds)


def keep_last(prompt: Sequence[int], max_positions: int | None, *, max_tokens: int | None = None) -> Sequence[int]:
    """Cut a prompt that is too long from the left, so that max_tokens can be written after it.

    A prompt that fits in is left whole. At least half of the positions are kept for a prompt that does not, and half
    of them if max_tokens is None.
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
class _Run:
    engine: Engine
    limits: Limits
    past: list[list[int]]  # ids a row, as the repetition rules see them
    room: list[int]  # ids that fit behind each prompt
    stop: Callable[[int, int], str | None] | None

    def append(self, row: int, id: int, *, written: int) -> str | None:
        self.past[row].append(id)
        reason = self.limits.reason(written, id)
        if reason != "end" and self.stop is not None:
            reason = self.stop(row, id) or reason
        return reason or ("context" if written == self.room[row] else None)


def _write(
    run: _Run, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, chances: Sequence[tuple[int, int]]
) -> Iterator[Token | End]:
    full = [row for row, room in enumerate(run.room) if room == 0]
    yield from (End(row, "context") for row in full)
    live = [row for row in range(len(run.past)) if row not in full]
    if not live:
        return
    cache, logits = run.engine.prefill(prompts, room=max(run.room))
    sources = [row // n for row in live]
    if sources != list(range(len(prompts))):
        cache.reorder(sources)
        logits = take_rows(logits, sources)
    queue = run.engine if isinstance(run.engine, QueueingEngine) else None
    written = 0
    while True:
        scores = sampling.apply(run.limits.apply(logits, written), [run.past[row] for row in live])
        draws = [uniform(*chances[row], written) for row in live]
        chosen = choose(scores, queue.send(draws) if queue else draws)
        fetched = queue.fetch(chosen) if queue else chosen.tolist
        written += 1
        if queue and written < max(run.room[row] for row in live):
            logits = cache.step(chosen)  # in vain for a row that ends with its id
        ids = checked(fetched(), run.engine.vocab_size)
        kept = []
        for place, (row, id) in enumerate(zip(live, ids, strict=True)):
            reason = run.append(row, id, written=written)
            yield Token(row, id)
            if reason is None:
                kept.append(place)
            else:
                yield End(row, reason)
        if not kept:
            return
        if len(kept) < len(live):
            cache.reorder(kept)
            logits = take_rows(logits, kept) if queue else logits
        live = [live[place] for place in kept]
        if not queue:
            logits = cache.step([ids[place] for place in kept])
