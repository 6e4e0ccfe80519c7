"""Text generation: joins a tokenizer, the loop and the stop rules. Results do not include the prompt."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hanmo.errors import HanmoError
from hanmo.generate import loop
from hanmo.generate.beam import beam_search
from hanmo.generate.continuous import ContinuousBatch
from hanmo.generate.draw import fresh_seed
from hanmo.generate.dynamic import is_dynamic
from hanmo.generate.loop import End, Engine, Token
from hanmo.generate.options import GenerationConfig
from hanmo.generate.rules import check_count
from hanmo.generate.speculation import speculative
from hanmo.generate.stop import NEVER, Stopper
from hanmo.generate.ticket import Event, Failed, RowRequest
from hanmo.tokenizers.prompt import encode_prompt
from hanmo.tokenizers.protocol import Tokenizer

Writing = GenerationConfig  # the name in 0.1
DEFAULT = GenerationConfig()
_MAX_SAMPLES = 256  # per text at once, which bounds memory
_AHEAD = 8  # texts that may be finished, or run, before the first one is: a multiple of the rows at once


@dataclass(frozen=True)
class GeneratedText:
    """One generated text.

    text: without the prompt, cut by the stop rules.   ids: all new ids, including those after the cut.
    reason: "sentence", "string", "chars" (see `stop`), "end", "length" or "context" (see `loop`).
    seed, sample: reproduce it; None for beams.   score: of a beam, else None.
    """

    text: str
    ids: tuple[int, ...]
    reason: str
    seed: int | None = None
    sample: int | None = None
    score: float | None = None


Written = GeneratedText  # the name in 0.1


class Stream:
    """An iterator over the pieces of one text while it is generated; see `stream`.

    seed: reproduces the text.   text, ids: the pieces and the ids so far.   reason: None until the text is finished.
    starts: for each id but an end id, the characters that were decoded before it; more than `text` has after a cut.
    Generation stops when iteration does; no id is computed ahead, except drafts and one by a QueueingEngine. Without an
    engine, `push` and `receive` take the ids of a row and the events of the loop.
    """

    def __init__(
        self, tokenizer: Tokenizer, text: str, prompt: Sequence[int], config: GenerationConfig, seed: int = 0
    ) -> None:
        self.seed = seed
        self.text = ""
        self.ids: list[int] = []
        self.starts: list[int] = []
        self.decoded = 0  # characters, including those after the cut
        self.reason: str | None = None
        self._events: Iterator[Token | End] = iter(())
        self._stopper = Stopper(config.stop, before=text if config.continues else "")
        self._decoder = tokenizer.stream()
        # Decoding the prompt first lets a word after its last word get a space, unless the prompt ends in one.
        for id in prompt if config.continues and not text[-1:].isspace() else ():
            self._decoder.push(id)
        self._pending = ""

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> str:
        for event in self._events:
            if piece := self.receive(event):
                return piece
        raise StopIteration

    def push(self, id: int) -> str | None:
        """Decode an id, before its event; return the reason if the text ends with it."""
        self.starts.append(self.decoded)
        self._pending += self._stopper.push(self._counted(self._decoder.push(id)))
        return self._stopper.reason

    def receive(self, event: Token | End) -> str:
        """Take an event of the loop and return the text that it adds."""
        if isinstance(event, Token):
            self.ids.append(event.id)
        elif self._stopper.reason is None:
            self._pending += self._stopper.push(self._counted(self._decoder.flush())) + self._stopper.flush()
        if isinstance(event, End):
            self.reason = self._stopper.reason or event.reason
        piece, self._pending = self._pending, ""
        self.text += piece
        return piece

    def _written(self, sample: int) -> GeneratedText:
        return GeneratedText(self.text, tuple(self.ids), self.reason or "", self.seed, sample)

    def _counted(self, piece: str) -> str:
        self.decoded += len(piece)
        return piece


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

    seed: None is a random one, found in `Stream.seed`.   sample: the number that the text has among those of `write`.
    Raises, at the call, PromptError for a text that cannot be continued and ConfigError for a setting.
    """
    seed = fresh_seed() if seed is None else seed
    ids = read_prompt(engine, tokenizer, text, config)
    streams, events = _start(engine, tokenizer, [text], [ids], config, [seed], 1, sample)
    streams[0]._events = events
    return streams[0]


def write(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    n: int = 1,
    config: GenerationConfig = DEFAULT,
    seed: int | Sequence[int] | None = None,
    first: int = 0,
    prompts: Sequence[Sequence[int]] | None = None,
) -> list[list[GeneratedText]]:
    """Continue each text n times; return a list per text, with samples numbered from `first`.

    If an engine's logits of a row do not depend on the batch, as in float32 and with the fused step, neither do the
    samples; otherwise sums are rounded differently in another batch.
    seed: one for all texts, or one for each; None is a random one for all.   prompts: as from `read_prompt`, if known.
    Raises, before the first id, PromptError for a text that cannot be continued and ConfigError for a setting.
    """
    check_count("n", n)
    seeds = loop.seeds_of(fresh_seed() if seed is None else seed, texts)
    prompts = [read_prompt(engine, tokenizer, text, config) for text in texts] if prompts is None else prompts
    if len(texts) > 1 and is_dynamic(engine):
        items = zip(texts, prompts, seeds, strict=True)
        return list(map(_raised, write_each(engine, tokenizer, items, n=n, config=config, first=first)))
    results: list[list[GeneratedText]] = [[] for _ in texts]
    for start in range(first, first + n, _MAX_SAMPLES):
        count = min(_MAX_SAMPLES, first + n - start)
        streams, events = _start(engine, tokenizer, texts, prompts, config, seeds, count, start)
        for event in events:
            streams[event.row].receive(event)
        for row, made in enumerate(streams):
            place, number = divmod(row, count)
            results[place].append(made._written(start + number))
    return results


def write_each(
    engine: Engine,
    tokenizer: Tokenizer,
    items: Iterable[tuple[str, Sequence[int] | HanmoError, int]],
    *,
    n: int = 1,
    config: GenerationConfig = DEFAULT,
    first: int = 0,
    max_rows: int = 32,
) -> Iterator[list[GeneratedText] | HanmoError]:
    """Continue texts as `write` does, the next one joining when a row ends, and yield the results in their order.

    items: (text, prompt, seed), read as they are needed.   max_rows: rows that are generated at once.
    A text that fails has its error as its result, as has one with an error in place of its prompt.
    """
    batch = ContinuousBatch(engine, max_rows=max_rows)
    pending: deque[_Pending] = deque()
    items = iter(items)
    more = True
    while more or pending:
        while more and len(pending) < _AHEAD * max_rows and batch.stats.waiting < max_rows:
            if item := next(items, None):
                pending.append(_Pending(batch, tokenizer, *item, config=config, n=n, first=first))
            else:
                more = False
        while pending and not pending[0].left:
            yield pending.popleft().result()
        batch.admit()
        batch.step()


class _Pending:
    """The texts of one prompt, which is submitted.   left: rows that have not ended."""

    def __init__(
        self,
        batch: ContinuousBatch,
        tokenizer: Tokenizer,
        text: str,
        prompt: Sequence[int] | HanmoError,
        seed: int,
        *,
        config: GenerationConfig,
        n: int,
        first: int,
    ) -> None:
        self.left, self._first = 0, first
        self._error: BaseException | None = prompt if isinstance(prompt, HanmoError) else None
        if isinstance(prompt, HanmoError):
            return
        self.left = n
        self._streams = [Stream(tokenizer, text, prompt, config, seed) for _ in range(n)]
        requests = [
            RowRequest(
                prompt=prompt,
                seed=seed,
                sample=first + number,
                sampling=config.sampling,
                limits=config.limits,
                history=config.continues,
                stop=stream.push,
                speculate=config.speculation == "auto",
            )
            for number, stream in enumerate(self._streams)
        ]
        batch.submit(requests, self._receive)

    def _receive(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._error, self.left = event.error, 0
        elif isinstance(event, Token | End):
            self._streams[event.row].receive(event)
            self.left -= isinstance(event, End)

    def result(self) -> list[GeneratedText] | HanmoError:
        """Return the texts or the error. Raises what is no HanmoError."""
        if isinstance(self._error, HanmoError):
            return self._error
        if self._error is not None:
            raise self._error
        return [stream._written(self._first + number) for number, stream in enumerate(self._streams)]


def _raised(result: list[GeneratedText] | HanmoError) -> list[GeneratedText]:
    if isinstance(result, HanmoError):
        raise result
    return result


def search(
    engine: Engine, tokenizer: Tokenizer, text: str, num_beams: int, *, config: GenerationConfig = DEFAULT
) -> list[GeneratedText]:
    """Continue a text by beam search: up to `num_beams` texts, best first; errors as for `write`."""
    prompt = read_prompt(engine, tokenizer, text, config)

    def replay(ids: Sequence[int], reason: str | None) -> Stream:
        made = Stream(tokenizer, text, prompt, config)
        for id in ids[:-1] if reason == "end" else ids:
            made.push(id)
            made.receive(Token(0, id))
        if reason is not None:
            made.receive(End(0, reason))
        return made

    beams = beam_search(
        engine,
        prompt,
        num_beams,
        sampling=config.sampling,
        limits=config.limits,
        length_penalty=config.length_penalty,
        history=config.continues,
        stop=None if config.stop == NEVER else lambda ids: replay(ids, None)._stopper.reason,
    )
    return [
        GeneratedText(made.text, beam.ids, made.reason or beam.reason, score=beam.score)
        for beam in beams
        for made in [replay(beam.ids, beam.reason)]
    ]


def read_prompt(engine: Engine, tokenizer: Tokenizer, text: str, config: GenerationConfig = DEFAULT) -> list[int]:
    """Return the ids of a prompt, truncated if `keep_last`. Raises PromptError if it cannot be continued.

    Marks around a source are kept; a mark before a text that is continued is truncated first.
    """
    before, prompt, after = config.before, encode_prompt(tokenizer, text, special=config.special), config.after
    if config.continues:
        before, prompt = (), [*before, *prompt]
    if config.keep_last and engine.max_positions is not None:
        room = engine.max_positions - len(before) - len(after)
        prompt = list(loop.keep_last(prompt, room, max_tokens=config.limits.max_tokens))
    ids = [*before, *prompt, *after]
    loop.check_prompt(engine, ids)
    return ids


def _start(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    seeds: Sequence[int],
    n: int,
    first: int,
) -> tuple[list[Stream], Iterator[Token | End]]:
    """Return n streams for each text, in the order of the loop's rows, and the loop's events."""
    streams = [
        Stream(tokenizer, text, ids, config, seed)
        for text, ids, seed in zip(texts, prompts, seeds, strict=True)
        for _ in range(n)
    ]
    events = loop.sample(
        speculative(engine) if config.speculation == "auto" else engine,
        prompts,
        seed=seeds,
        n=n,
        first=first,
        sampling=config.sampling,
        limits=config.limits,
        history=config.continues,
        stop=lambda row, id: streams[row].push(id),
    )
    return streams, events
