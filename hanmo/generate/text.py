"""Text in, text out: the one file here that knows both text and ids.

Joins a tokenizer, the loop and the stop rules. What comes back is what was written, without the prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hanmo.generate import loop
from hanmo.generate.beam import beam_search
from hanmo.generate.draw import check_seed, fresh_seed
from hanmo.generate.loop import PLAIN, UNLIMITED, End, Engine, Limits, Token
from hanmo.generate.rules import check_count
from hanmo.generate.sampling import Sampling
from hanmo.generate.stop import NEVER, Stopper, StopRules
from hanmo.tokenizers.prompt import encode_prompt
from hanmo.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to write: how ids are chosen, when a text ends, what to do with a prompt that is too long.

    length_penalty: of `search`, as in `beam_search`.
    keep_last: cut a prompt that is too long from the left; without it such a prompt is an error.
    continues: whether the text goes on from the prompt, which then counts for the repetition rules, opens quotes and
        settles the first space; False where the prompt is the source of an encoder.
    special: how the prompt is encoded, as in `Tokenizer.encode`.   before, after: ids that stand around it.
    """

    sampling: Sampling = PLAIN
    limits: Limits = UNLIMITED
    stop: StopRules = NEVER
    length_penalty: float = 0.0
    keep_last: bool = False
    continues: bool = True
    special: bool = False
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


Writing = GenerationConfig  # the name in 0.1
DEFAULT = GenerationConfig()
_TOGETHER = 256  # samples of a text that are written at once; any number of rows would take any memory


@dataclass(frozen=True)
class GeneratedText:
    """One text that was written.

    text: without the prompt, cut by the stop rules.   ids: all that were written, also those behind the cut.
    reason: "sentence", "string", "chars" (see `stop`), "end", "length" or "context" (see `loop`).
    seed, sample: what repeats it; None for beams.   score: of a beam, else None.
    """

    text: str
    ids: tuple[int, ...]
    reason: str
    seed: int | None = None
    sample: int | None = None
    score: float | None = None


Written = GeneratedText  # the name in 0.1


class Stream:
    """One text while it is written: iterate over its pieces, which joined are the whole text.

    seed: repeats the text.   text: what is shown so far.   reason: None until the text is finished.
    Stopping to iterate stops the work; nothing is computed ahead, but for one id by an engine with a queue.
    """

    def __init__(self, writer: "_Writer", events: Iterator[Token | End], seed: int) -> None:
        """Take a writer and the events of its one row; `stream` makes one."""
        self.seed = seed
        self._writer = writer
        self._pieces = (piece for piece in map(writer.receive, events) if piece)

    def __iter__(self) -> "Stream":
        """Return itself: a text can be written once."""
        return self

    def __next__(self) -> str:
        """Write until there is something to show."""
        return next(self._pieces)

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self._writer.text

    @property
    def reason(self) -> str | None:
        """Why the text is finished, once it is."""
        return self._writer.reason


def stream(
    engine: Engine,
    tokenizer: Tokenizer,
    text: str,
    *,
    config: GenerationConfig = DEFAULT,
    seed: int | None = None,
    sample: int = 0,
) -> Stream:
    """Continue a text piece by piece.

    seed: None takes a fresh one, which the stream tells.   sample: the number of the sample that `write` would give.
    Raises PromptError for a text that cannot be continued and ConfigError for a setting, both before the first piece.
    """
    seed = fresh_seed() if seed is None else seed
    check_seed(seed)
    ids = read_prompt(engine, tokenizer, text, config)
    writer = _Writer(tokenizer, text, ids, config)
    return Stream(writer, _sample(engine, [ids], config, [writer], [seed], 1, sample), seed)


def write(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    n: int = 1,
    config: GenerationConfig = DEFAULT,
    seed: int | Sequence[int] | None = None,
    first: int = 0,
) -> list[list[GeneratedText]]:
    """Continue each text n times, at most 256 at once: one list a text, its samples numbered from `first`.

    Where the engine gives a row the same logits in every batch, as in float32, each sample is what it would be if it
    were written alone with the same seed and number; with fewer bits sums are rounded otherwise in another batch.
    seed: one for all texts, or one for each; None takes a fresh one for all.
    Raises PromptError for a text that cannot be continued and ConfigError for a setting, both before the first id.
    """
    check_count("n", n)
    if n > _TOGETHER:
        seeds = loop.seeds_of(fresh_seed() if seed is None else seed, texts)
        counts = [(first + at, min(_TOGETHER, n - at)) for at in range(0, n, _TOGETHER)]
        parts = [write(engine, tokenizer, texts, n=k, config=config, seed=seeds, first=at) for at, k in counts]
        return [[written for part in parts for written in part[row]] for row in range(len(texts))]
    seeds = loop.seeds_of(fresh_seed() if seed is None else seed, texts)
    prompts = [read_prompt(engine, tokenizer, text, config) for text in texts]
    writers = [
        _Writer(tokenizer, text, ids, config) for text, ids in zip(texts, prompts, strict=True) for _ in range(n)
    ]
    for event in _sample(engine, prompts, config, writers, seeds, n, first):
        writers[event.row].receive(event)
    written = [
        GeneratedText(writer.text, tuple(writer.ids), writer.reason or "", seeds[row // n], first + row % n)
        for row, writer in enumerate(writers)
    ]
    return [written[start : start + n] for start in range(0, len(written), n)]


def search(
    engine: Engine, tokenizer: Tokenizer, text: str, num_beams: int, *, config: GenerationConfig = DEFAULT
) -> list[GeneratedText]:
    """Continue a text by beam search: up to `num_beams` texts, best first; see `beam_search`.

    Raises PromptError for a text that cannot be continued and ConfigError for a setting.
    """
    prompt = read_prompt(engine, tokenizer, text, config)

    def replay(ids: Sequence[int], reason: str | None) -> _Writer:
        writer = _Writer(tokenizer, text, prompt, config)
        for id in ids[:-1] if reason == "end" else ids:
            writer.stop(id)
            writer.receive(Token(0, id))
        if reason is not None:
            writer.receive(End(0, reason))
        return writer

    beams = beam_search(
        engine,
        prompt,
        num_beams,
        sampling=config.sampling,
        limits=config.limits,
        length_penalty=config.length_penalty,
        history=config.continues,
        stop=None if config.stop == NEVER else lambda ids: replay(ids, None).stopped,
    )
    finished = [replay(beam.ids, beam.reason) for beam in beams]
    return [
        GeneratedText(writer.text, beam.ids, writer.reason or beam.reason, score=beam.score)
        for writer, beam in zip(finished, beams, strict=True)
    ]


def read_prompt(engine: Engine, tokenizer: Tokenizer, text: str, config: GenerationConfig = DEFAULT) -> list[int]:
    """Turn a prompt into ids, cut to what the model can hold if `keep_last` is set.

    Raises PromptError for a text that the tokenizer or the model cannot take.
    """
    prompt = encode_prompt(tokenizer, text, special=config.special)
    ids = [*config.before, *prompt, *config.after]
    if config.keep_last:
        ids = list(loop.keep_last(ids, engine.max_positions, max_tokens=config.limits.max_tokens))
    loop.check_prompt(engine, ids)
    return ids


class _Writer:
    """One text: its decoder, its stop rules, and what came of them."""

    def __init__(self, tokenizer: Tokenizer, text: str, prompt: Sequence[int], config: GenerationConfig) -> None:
        self.reason: str | None = None
        self.ids: list[int] = []
        self.shown: list[str] = []
        self._stopper = Stopper(config.stop, before=text if config.continues else "")
        self._decoder = tokenizer.stream()
        # Shown by the prompt itself. A word that follows a word needs a space before it, unless the prompt ends in one.
        for id in prompt if config.continues and not text[-1:].isspace() else ():
            self._decoder.push(id)
        self._pending = ""

    @property
    def text(self) -> str:
        return "".join(self.shown)

    @property
    def stopped(self) -> str | None:
        return self._stopper.reason

    def stop(self, id: int) -> str | None:
        """Decode an id, before its event comes; answer the loop's question whether the text ends with it."""
        self._pending += self._stopper.push(self._decoder.push(id))
        return self._stopper.reason

    def receive(self, event: Token | End) -> str:
        """Take an event of the loop and return what it adds to the text."""
        if isinstance(event, Token):
            self.ids.append(event.id)
        elif self._stopper.reason is None:
            self._pending += self._stopper.push(self._decoder.flush()) + self._stopper.flush()
        if isinstance(event, End):
            self.reason = self._stopper.reason or event.reason
        piece, self._pending = self._pending, ""
        if piece:
            self.shown.append(piece)
        return piece


def _sample(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    writers: Sequence[_Writer],
    seeds: Sequence[int],
    n: int,
    first: int,
) -> Iterator[Token | End]:
    return loop.sample(
        engine,
        prompts,
        seed=seeds,
        n=n,
        first=first,
        sampling=config.sampling,
        limits=config.limits,
        history=config.continues,
        stop=lambda row, id: writers[row].stop(id),
    )
