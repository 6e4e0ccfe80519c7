"""Write with any engine: prompts in, texts out, by settings in words that people use.

Joins an engine and a tokenizer with hanmo.generate. Imports no torch unless the engine does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, CorruptFile, MissingFile, TokenizerError
from hanmo.files import read_json
from hanmo.generate.loop import Engine, Limits
from hanmo.generate.rules import check_count
from hanmo.generate.sampling import PRESETS, Sampling
from hanmo.generate.stop import StopRules
from hanmo.generate.text import Stream, Writing, Written, search, stream, write
from hanmo.tokenizers.load import load_tokenizer
from hanmo.tokenizers.prompt import Marks, marks_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.weights.recognise import SPARE

__all__ = ["SMALL", "Writer", "check_search", "find_tokenizer", "open_writer"]

SMALL = Path(__file__).parent / "assets" / "small"
"""The small model inside the package, trained by Hanmo; its MODEL_CARD.md says on what."""


class Writer:
    """Something that writes: its configuration, tokenizer (None if no vocabulary was found), path and engine."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None, path: Path) -> None:
        if tokenizer is not None and tokenizer.vocab > config.vocab:
            raise TokenizerError(
                f"the vocabulary beside {path} has {tokenizer.vocab:,} words, the checkpoint {config.vocab:,} rows; "
                "they do not belong together: give the vocabulary that came with the checkpoint"
            )
        if tokenizer is not None and config.vocab - tokenizer.vocab > SPARE:
            raise TokenizerError(
                f"the vocabulary beside {path} has {tokenizer.vocab:,} words, the checkpoint {config.vocab:,} rows; "
                f"more than {SPARE} spare rows mean another vocabulary: give the one that came with the checkpoint"
            )
        self.config, self.tokenizer, self.path = config, tokenizer, path

    def __repr__(self) -> str:
        config, stack = self.config, self.config.main
        size = f"{stack.depth} x {stack.width}, {config.vocab:,} ids"
        return f"<{type(self).__name__} of {self.path}: {config.family}, {size}>"

    @property
    def engine(self) -> Engine:
        """What runs each step. Raises CheckpointError if the model cannot write."""
        raise NotImplementedError

    @property
    def remembering(self) -> Engine:
        """The engine as `write` and `stream` use it: it may know the beginning of a prompt from the last texts."""
        return self.engine

    def write(
        self, text: str, *, n: int = 1, seed: int | None = None, beams: int | None = None, **how: Any
    ) -> list[str]:
        """Go on from a text n times; each result begins with it (an encoder-decoder answers instead).

        seed: repeats the results; each depends only on it and its number.   beams: search with so many instead of
        drawing, and give the n best.   how: see `writing`.
        Raises PromptError for a text that cannot be continued, ConfigError for a setting out of range.
        """
        return [self.joined(text, written) for written in self.write_detailed(text, n=n, seed=seed, beams=beams, **how)]

    def write_detailed(
        self, text: str, *, n: int = 1, seed: int | None = None, beams: int | None = None, **how: Any
    ) -> list[Written]:
        """Do as `write` does, and say why each text ended; the prompt is not part of `Written.text`."""
        tokenizer, writing = self._tokenizer(), self.writing(**how)
        if beams is None:
            return write(self.remembering, tokenizer, [text], n=n, writing=writing, seed=seed)[0]
        check_search(beams, n, seed, how)
        return search(self.remembering, tokenizer, text, beams, writing=writing)[:n]

    def stream(self, text: str, *, seed: int | None = None, sample: int = 0, **how: Any) -> Stream:
        """Go on from a text piece by piece: an iterator of str, without the prompt; arguments as for `write`.

        sample: the number that the text would have among the n of `write`.
        """
        tokenizer, writing = self._tokenizer(), self.writing(**how)
        return stream(self.remembering, tokenizer, text, writing=writing, seed=seed, sample=sample)

    def writing(
        self,
        *,
        preset: str | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int | None = None,
        allow_unknown: bool = False,
        min_chars: int | None = None,
        max_chars: int | None = 256,
        max_tokens: int | None = None,
        stop: str | None = "sentence",
        stop_strings: Sequence[str] = (),
        keep_last: bool = False,
        parse_special: bool = True,
    ) -> Writing:
        """Make the settings of writing.

        temperature: 0 always takes the likeliest.   top_k, top_p: draw from the likeliest only; with neither, from 5.
        preset: "article", "gpt2-ml-demo" or "greedy" draws just as that did, instead of by the settings of drawing.
        stop: "sentence" ends with the first sentence after min_chars (128, or max_chars if less); None goes on.
        max_chars: the most characters; None is no limit. Both count what is written, without the prompt.
        max_tokens: the most tokens; None is as far as the model knows positions.   allow_unknown: let [UNK] be written.
        keep_last: cut a prompt that is too long from the left.
        parse_special: read "[CLS]" and its like in a prompt as tokens; False, for prompts of strangers, as characters.
        Raises ConfigError for a setting out of range.
        """
        drawing = (temperature, top_k, top_p, repetition_penalty, no_repeat_ngram) != (1.0, None, None, 1.0, None)
        _check(preset if drawing else None, stop, min_chars, max_chars)
        if preset is None:
            sampling = Sampling(
                temperature=temperature,
                top_k=5 if top_k is None and top_p is None else top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                no_repeat_ngram=no_repeat_ngram,
                banned=self._marks(allow_unknown),
            )
        elif preset in PRESETS:
            sampling = PRESETS[preset]
        else:
            raise ConfigError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        spare = range(self._tokenizer().vocab, self.config.vocab)
        least = min(128, max_chars or 128) if min_chars is None else min_chars
        if max_tokens is None and self.config.main.context is None:
            max_tokens = 4 * (max_chars or 1024)  # an end for models whose positions have none
        marks, answers = self.marks, self.config.answers
        return Writing(
            sampling=replace(sampling, banned=(*sampling.banned, *spare)),
            limits=Limits(max_tokens=max_tokens, end_ids=marks.ends),
            stop=StopRules(sentence_after=least if stop else None, strings=tuple(stop_strings), max_chars=max_chars),
            keep_last=keep_last,
            special=parse_special,
            continues=not answers and self.config.main.mask == "causal",
            before=marks.before,
            after=marks.after,
        )

    def _marks(self, allow_unknown: bool) -> tuple[int, ...]:
        """Give the special ids that are no text and end none."""
        special = self._tokenizer().special
        kept = {*self.marks.ends, *({special.unk} if allow_unknown else ())}
        return tuple(sorted(special.known() - kept))

    @property
    def marks(self) -> Marks:
        """The ids that stand around prompts and end texts. Raises MissingFile without a vocabulary."""
        return marks_of(self.config, self._tokenizer())

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise MissingFile(
                f"no vocabulary lies beside {self.path}; put its vocab.txt or *.model there, or give tokenizer=PATH"
            )
        return self.tokenizer

    def joined(self, text: str, written: Written) -> str:
        """Join a prompt and what was written on; an answer to a source stands alone."""
        return written.text if self.config.answers or self.config.main.mask == "prefix" else text + written.text


def _check(preset: str | None, stop: str | None, min_chars: int | None, max_chars: int | None) -> None:
    """Refuse settings that contradict each other; preset: None unless settings of drawing stand beside it."""
    if preset is not None:
        raise ConfigError(f"preset is {preset!r}, which settles how to draw; leave the other settings of drawing out")
    if stop not in ("sentence", None):
        raise ConfigError(f"stop is {stop!r}; expected 'sentence' or None (and see stop_strings)")
    if max_chars is not None:
        check_count("max_chars", max_chars)
    if min_chars is not None and not 0 <= min_chars <= (max_chars or min_chars):
        raise ConfigError(f"min_chars is {min_chars}; expected 0 or more, and no more than max_chars ({max_chars})")


def check_search(beams: int, n: int, seed: int | None, how: Mapping[str, Any]) -> None:
    """Raise ConfigError for a search that is also to draw, or to give more texts than it has beams."""
    check_count("beams", beams)
    if seed is not None or {"temperature", "top_k", "top_p", "preset"} & {
        name for name, value in how.items() if value not in (None, 1.0)
    }:
        raise ConfigError(
            "beams search for the likeliest text and draw nothing; leave seed and the settings of drawing out"
        )
    if n > beams:
        raise ConfigError(f"n is {n}, beams is {beams}; a search gives at most as many texts as it has beams")


class _EngineWriter(Writer):
    """A writer over an engine that is open, and over what remembers its prompts."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer | None, path: Path, engine: Engine, remembering: Engine
    ) -> None:
        super().__init__(config, tokenizer, path)
        self._engine, self._remembering = engine, remembering

    @property
    def engine(self) -> Engine:
        """The engine it was made with."""
        return self._engine

    @property
    def remembering(self) -> Engine:
        """The engine behind the last prompts."""
        return self._remembering


def open_writer(
    path: str | Path = SMALL,
    *,
    weights: str = "int8",
    threads: int | None = None,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    mask: str | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    progress: Callable[[int], None] | None = None,
) -> Writer:
    """Open a checkpoint for writing on a CPU, without torch once its weights were converted and kept.

    weights: "int8", "int4", "bfloat16" or "float32".   threads: None leaves it to OpenVINO.
    path, config, family, mask, tokenizer: as for `hanmo.load`.   progress: called with the bytes read while converting.
    Raises what `hanmo.load` raises.
    """
    from hanmo.engines.openvino_engine import OpenVinoEngine, open_weights
    from hanmo.engines.prompt_cache import PromptCache

    path = Path(path)
    kept = open_weights(path, weights=weights, config=config, family=family, progress=progress)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = find_tokenizer(path, tokenizer)
    start = 0 if tokenizer is None else marks_of(kept.config, tokenizer).start
    engine = OpenVinoEngine(kept, mask=mask, threads=threads, start=start)
    return _EngineWriter(engine.config, tokenizer, path, engine, PromptCache(engine))


def find_tokenizer(path: Path, given: str | Path | None) -> Tokenizer | None:
    """Load the tokenizer that was given, or the one in the checkpoint's folder; None if there is none.

    Raises MissingFile or TokenizerError for one that cannot be used.
    """
    if given is not None:
        return load_tokenizer(given)
    try:
        return load_tokenizer(path if path.is_dir() else path.parent)
    except MissingFile:
        return None


def distinct_unknown_of(path: Path) -> int:
    """Tell how many distinct unknown characters training saw, by training.json beside a checkpoint; or 0.

    Raises CorruptFile if that file does not say so.
    """
    told = (path if path.is_dir() else path.parent) / "training.json"
    if not told.is_file():
        return 0
    found = read_json(told, advice="; mend it or take it away").get("distinct_unknown")
    if type(found) is not int or found < 0:
        raise CorruptFile(f"{told} says distinct_unknown is {found!r}; expected a whole number of 0 or more")
    return found
