"""The generation pipeline: an engine and a tokenizer. Imports torch only if the engine does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from hanmo.checkpoint.open import INCLUDED, included, locate
from hanmo.checkpoint.recognise import SPARE
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile, TokenizerError
from hanmo.generate.draw import fresh_seed
from hanmo.generate.dynamic import is_dynamic
from hanmo.generate.loop import Engine, Limits
from hanmo.generate.options import GenerationConfig, Options, Request, Speculation, generation_defaults, showing
from hanmo.generate.rules import check_count
from hanmo.generate.sampling import GREEDY, PRESETS, TOP_K, Sampling
from hanmo.generate.stop import StopRules
from hanmo.generate.text import GeneratedText, Stream, search, stream, write
from hanmo.tokenizers.bert_rules import PreTokenize
from hanmo.tokenizers.load import load_tokenizer
from hanmo.tokenizers.prompt import Marks, as_texts, marks_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.sentence_piece import sentinel_ids, with_sentinels

if TYPE_CHECKING:
    from typing_extensions import Unpack

SMALL = INCLUDED["small"]
"""The small model inside the package, trained by Hanmo; its MODEL_CARD.md says on what."""

Texts: TypeAlias = list[str] | tuple[str, ...]


class Pipeline:
    """A configuration, a tokenizer (None if no vocabulary was found), a path and an engine.

    cached_engine: the engine with a prefix cache, for `write` and `stream`; None uses the engine itself.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        path: Path,
        engine: Engine | None = None,
        cached_engine: Engine | None = None,
    ) -> None:
        words, rows = config.vocab_size if tokenizer is None else tokenizer.vocab_size, config.vocab_size
        if words > rows:
            raise TokenizerError(
                f"the vocabulary has {words:,} words, the model of {path} {rows:,} rows; "
                "they do not belong together: give the vocabulary that the model was trained with, or more rows"
            )
        if rows - words > SPARE:
            raise TokenizerError(
                f"the vocabulary has {words:,} words, the model of {path} {rows:,} rows; "
                f"more than {SPARE} spare rows mean another vocabulary: give the one that the model was trained with"
            )
        self.config, self.tokenizer, self.path = config, tokenizer, path
        self._engine, self._cached_engine = engine, cached_engine

    def __repr__(self) -> str:
        config, stack = self.config, self.config.main
        size = f"{stack.num_layers} x {stack.hidden_size}, {config.vocab_size:,} ids"
        return f"<{type(self).__name__} of {self.path}: {config.family}, {size}>"

    @property
    def engine(self) -> Engine:
        """The engine. Raises CheckpointError if the model cannot generate text."""
        if self._engine is None:
            raise NotImplementedError
        return self._engine

    @property
    def cached_engine(self) -> Engine:
        """The engine that `write` and `stream` use; it may reuse the prefix of an earlier prompt.

        Its logits equal those of the engine up to rounding: 1e-5 in float32, more with other weights.
        """
        return self._cached_engine or self.engine

    def generation_config(
        self,
        *,
        preset: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram: int | None = None,
        length_penalty: float = 0.0,
        allow_unknown: bool = False,
        min_chars: int | None = None,
        max_chars: int | None = 256,
        max_tokens: int | None = None,
        stop: str | None = "sentence",
        stop_strings: Sequence[str] = (),
        keep_last: bool = False,
        parse_special: bool = True,
        speculation: Speculation = "auto",
    ) -> GenerationConfig:
        """Make the settings of generation.

        temperature: 0 is greedy; 1 by default.   top_k, top_p: sample from the likeliest only; without either, from 5.
        repetition_penalty: above 1 makes ids of the text so far less likely.   no_repeat_ngram: never repeat a run of
        this many ids; 0 is no limit. Each of these five that is None is taken from generation_config.json beside the
        model, if it is there; its bad_words_ids are never written.
        preset: "article", "gpt2-ml-demo" or "greedy" samples exactly as that did, in place of the five.
        length_penalty: for `beams`, ranked by log-probability / length ** length_penalty.
        stop: "sentence" ends with the first sentence after min_chars (128, or max_chars if less); None does not.
        max_chars: maximum number of characters; None is no limit. Neither count includes the prompt.
        max_tokens: maximum number of tokens; None is up to the model's last position.
        allow_unknown: allow [UNK].   keep_last: truncate a prompt that is too long on the left.
        parse_special: read "[CLS]" and its like in a prompt as tokens; use False for untrusted prompts.
        speculation: "auto" drafts ids by prompt lookup where no text changes (the fused step of int8 and int4); "off".
        Raises ConfigError for a setting out of range.
        """
        sampling = self._sampling(
            preset,
            allow_unknown,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
        )
        if max_tokens is None and self.config.main.context is None:
            max_tokens = 4 * (max_chars or 1024)  # a limit for models without a last position
        marks = self.marks
        return GenerationConfig(
            sampling=sampling,
            limits=Limits(max_tokens=max_tokens, end_ids=marks.ends),
            stop=_stop_rules(stop, stop_strings, min_chars, max_chars),
            length_penalty=length_penalty,
            keep_last=keep_last,
            special=parse_special,
            continues=not self.config.is_encoder_decoder and self.config.main.mask == "causal",
            before=marks.before,
            after=marks.after,
            speculation=speculation,
        )

    writing = generation_config  # the name in 0.1

    @overload
    def write_detailed(self, text: str, **options: "Unpack[Request]") -> list[GeneratedText]: ...
    @overload
    def write_detailed(self, text: Texts, **options: "Unpack[Request]") -> list[list[GeneratedText]]: ...
    @showing(generation_config)
    def write_detailed(
        self,
        text: str | Texts,
        *,
        n: int = 1,
        seed: int | None = None,
        beams: int | None = None,
        **options: "Unpack[Options]",
    ) -> list[GeneratedText] | list[list[GeneratedText]]:
        """Do as `write`, and return each text with the reason for its end and without the prompt."""
        tokenizer, config = self._tokenizer(), self.generation_config(**options)
        check_search(beams, n, seed, options)
        if not isinstance(text, str):
            texts = as_texts(text)
            if beams is None and is_dynamic(self.engine):
                seeds = [fresh_seed() if seed is None else seed for _ in texts]
                return write(self.engine, tokenizer, texts, n=n, config=config, seed=seeds)
            return [self.write_detailed(each, n=n, seed=seed, beams=beams, **options) for each in texts]
        if beams is None:
            return write(self.cached_engine, tokenizer, [text], n=n, config=config, seed=seed)[0]
        return search(self.cached_engine, tokenizer, text, beams, config=config)[:n]

    @overload
    def write(self, text: str, **options: "Unpack[Request]") -> list[str]: ...
    @overload
    def write(self, text: Texts, **options: "Unpack[Request]") -> list[list[str]]: ...
    @showing(write_detailed)
    def write(self, text: str | Texts, **options: "Unpack[Request]") -> list[str] | list[list[str]]:
        """Continue a text n times; each result begins with the text (except for an encoder-decoder).

        text: one, or a list of texts, which gives a list for each.
        seed: reproduces the draws, which depend only on it and the number of the sample. In float32 it reproduces the
        texts; so it does in int8 and int4 with the fused step (large models, AVX2). Otherwise they may change with n
        and after a cached prefix, as logits are then rounded differently.
        beams: beam search with this many beams instead of sampling, returning the n best.
        The other arguments: see `generation_config`.
        Raises PromptError for a text that cannot be continued, ConfigError for a setting out of range.
        """
        if not isinstance(text, str):
            texts = as_texts(text)
            found = self.write_detailed(texts, **options)
            return [[self.joined(text, each) for each in made] for text, made in zip(texts, found, strict=True)]
        return [self.joined(text, result) for result in self.write_detailed(text, **options)]

    @showing(generation_config)
    def stream(self, text: str, *, seed: int | None = None, sample: int = 0, **options: "Unpack[Options]") -> Stream:
        """Continue a text piece by piece: an iterator of str, without the prompt; arguments as for `write`.

        sample: the number of the text among the n of `write`; in float32 the texts are equal.
        """
        check_search(None, 1, seed, options)
        tokenizer, config = self._tokenizer(), self.generation_config(**options)
        return stream(self.cached_engine, tokenizer, text, config=config, seed=seed, sample=sample)

    def _sampling(self, preset: str | None, allow_unknown: bool, **drawing: float | None) -> Sampling:
        """Return the preset, or the arguments over the model's own defaults over ours."""
        given: dict[str, Any] = {name: value for name, value in drawing.items() if value is not None}
        if preset is not None and given:
            raise ConfigError(
                f"preset is {preset!r}, which settles how to draw; leave the other settings of drawing out"
            )
        if preset is not None and preset not in PRESETS:
            raise ConfigError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        tokenizer, own = self._tokenizer(), generation_defaults(self.path)
        spare = range(tokenizer.vocab_size, self.config.vocab_size)
        kept = {*self.marks.ends, *({tokenizer.special.unk} if allow_unknown else ())}
        marks = sorted({*tokenizer.special.known(), *sentinel_ids(tokenizer)} - kept)
        banned = (*marks, *spare, *own.pop("banned", ()))
        if preset is not None:  # presets of originals keep the bans of the original
            known = PRESETS[preset]
            return replace(known, banned=banned if known is GREEDY else (*known.banned, *spare))
        if given.keys() & {"top_k", "top_p"}:
            own = {name: value for name, value in own.items() if name not in ("top_k", "top_p")}
        told = own | given
        if not told.keys() & {"top_k", "top_p"}:
            told["top_k"] = TOP_K
        told["no_repeat_ngram"] = told.get("no_repeat_ngram") or None
        return Sampling(**told, banned=banned)

    @property
    def marks(self) -> Marks:
        """The ids around prompts and at the end of texts. Raises MissingFile without a vocabulary."""
        return marks_of(self.config, self._tokenizer())

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise MissingFile(
                f"there is no vocabulary beside {self.path}; put its vocab.txt or *.model there, or give tokenizer=PATH"
            )
        return self.tokenizer

    def joined(self, text: str, written: GeneratedText) -> str:
        """Return the prompt followed by the text; the text only if it answers a source."""
        answers = self.config.is_encoder_decoder or self.config.main.mask == "prefix"
        return written.text if answers else text + written.text


Writer = Pipeline  # the name in 0.1


def _stop_rules(stop: str | None, strings: Sequence[str], min_chars: int | None, max_chars: int | None) -> StopRules:
    if stop not in ("sentence", None):
        raise ConfigError(f"stop is {stop!r}; expected 'sentence' or None (and see stop_strings)")
    if max_chars is not None:
        check_count("max_chars", max_chars)
    if min_chars is not None and not 0 <= min_chars <= (max_chars or min_chars):
        raise ConfigError(f"min_chars is {min_chars}; expected 0 or more, and no more than max_chars ({max_chars})")
    least = min(128, max_chars or 128) if min_chars is None else min_chars
    return StopRules(sentence_after=least if stop else None, strings=tuple(strings), max_chars=max_chars)


def check_search(beams: int | None, n: int, seed: int | None, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a beam search with sampling settings, or with fewer beams than texts.

    beams: None for sampling.   options: the arguments of `Pipeline.generation_config` that were given.
    """
    if beams is None:
        if options.get("length_penalty"):
            raise ConfigError(
                f"length_penalty is {options['length_penalty']!r}, which ranks the texts of a search; give beams=N too"
            )
        return
    check_count("beams", beams, most=1024)  # all are in memory
    if seed is not None or any(options.get(name) is not None for name in ("temperature", "top_k", "top_p", "preset")):
        raise ConfigError(
            "beams search for the likeliest text and draw nothing; leave seed and the settings of drawing out"
        )
    if n > beams:
        raise ConfigError(f"n is {n}, beams is {beams}; a search gives at most as many texts as it has beams")


def open_writer(
    path: str | Path = SMALL,
    *,
    weights: str = "int8",
    threads: int | None = None,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    mask: str | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    pre_tokenize: bool | PreTokenize | None = None,
    progress: Callable[[int], None] | None = None,
) -> Pipeline:
    """Open a checkpoint for generation on a CPU, without torch once its converted weights are cached.

    weights: "int8", "int4", "bfloat16" or "float32".   threads: None is OpenVINO's default.
    path, config, family, mask, tokenizer, pre_tokenize: as for `hanmo.load`.
    progress: called with the number of bytes read in conversion.
    Raises the errors of `hanmo.load`.
    """
    from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights
    from hanmo.inference.prefix_cache import PromptCache

    path, found = included(path), locate(path)
    if path.is_dir():
        path = found.folder  # in a training run's folder, its best checkpoint
    kept = open_weights(found, weights=weights, config=config, family=family, progress=progress)
    if tokenizer is None or isinstance(tokenizer, str | Path):
        tokenizer = find_tokenizer(path, tokenizer, kept.config, pre_tokenize=pre_tokenize)
    start = 0 if tokenizer is None else marks_of(kept.config, tokenizer).start
    engine = OpenVinoEngine(kept, mask=mask, threads=threads, start=start)
    return Pipeline(engine.config, tokenizer, path, engine, PromptCache(engine))


def find_tokenizer(
    path: Path, given: str | Path | None, config: ModelConfig, *, pre_tokenize: bool | PreTokenize | None = None
) -> Tokenizer | None:
    """Load the given tokenizer, or the one in the checkpoint's folder; None if there is none.

    Rows of a T5 after its .model's pieces are its sentinels, up to 100, if no file gives their number.
    Raises MissingFile or TokenizerError for one that cannot be used.
    """
    try:
        found = load_tokenizer(given or (path if path.is_dir() else path.parent), pre_tokenize=pre_tokenize)
    except MissingFile:
        if given is not None:
            raise
        return None
    return with_sentinels(found, config.vocab_size) if config.is_encoder_decoder else found
