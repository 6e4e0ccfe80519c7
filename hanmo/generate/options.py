"""The settings of generation, their keyword arguments, and a model's defaults from generation_config.json."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeAlias, TypedDict, TypeVar

from hanmo.errors import ConfigError
from hanmo.files import read_json
from hanmo.generate.loop import PLAIN, UNLIMITED, Limits
from hanmo.generate.rules import check_number
from hanmo.generate.sampling import Sampling
from hanmo.generate.stop import NEVER, StopRules

P = ParamSpec("P")
R = TypeVar("R")
Speculation: TypeAlias = Literal["auto", "off"]

# transformers' names in generation_config.json → ours.
_GENERATION = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram",
}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The settings of generation.

    length_penalty: of `search`; see `beam_search`.   keep_last: truncate a prompt that is too long on the left.
    continues: the text continues the prompt, which then counts for the repetition rules, quotes and the first space;
        False if the prompt is the source of an encoder.
    special: encode the prompt with special=True.   before, after: ids around the prompt.
    speculation: "auto" drafts ids by prompt lookup where this changes no text (see speculation.py); "off" does not.
    Raises ConfigError for a length_penalty that is not finite and for another speculation.
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
    speculation: Speculation = "auto"

    def __post_init__(self) -> None:
        check_number("length_penalty", self.length_penalty, above=-math.inf)
        if self.speculation not in ("auto", "off"):
            raise ConfigError(f"speculation is {self.speculation!r}; expected 'auto' or 'off'")


class Options(TypedDict, total=False):
    """The arguments of `Pipeline.generation_config`, where they are documented."""

    preset: str | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram: int | None
    length_penalty: float
    allow_unknown: bool
    min_chars: int | None
    max_chars: int | None
    max_tokens: int | None
    stop: str | None
    stop_strings: Sequence[str]
    keep_last: bool
    parse_special: bool
    speculation: Speculation


class Request(Options, total=False):
    """The arguments of `write` and `write_detailed`."""

    n: int
    seed: int | None
    beams: int | None


def showing(options: Callable[..., object]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add the keyword arguments of `options` to the signature of a function that takes them as **options.

    An unknown argument raises a TypeError with the function's name and the nearest argument names.
    """
    shared = [each for each in signature(options).parameters.values() if each.kind is Parameter.KEYWORD_ONLY]

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = signature(function)
        parameters = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD] + shared
        names = [each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY]

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in names and name not in own.parameters:
                    near = get_close_matches(name, names, 1, 0.8) or get_close_matches(name, names, 2, 0.5)
                    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}"
                    raise TypeError(f"{function.__name__}() has no argument {name!r}; {hint}")
            return function(*args, **kwargs)

        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def generation_defaults(path: Path) -> dict[str, Any]:
    """Read the sampling settings of generation_config.json beside a checkpoint, by our names; {} without the file.

    Settings that are null, or 0 for no limit, are left out; bad_words_ids is `banned`.
    Raises ConfigError if the file is not a JSON object, a setting is out of range, or a bad word has several ids.
    """
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    if not file.is_file():
        return {}
    content = read_json(file, error=ConfigError)
    found = {ours: content[name] for name, ours in _GENERATION.items() if content.get(name) is not None}
    found = {name: value for name, value in found.items() if value != 0 or name in ("temperature", "top_p")}
    if words := content.get("bad_words_ids"):
        if not isinstance(words, list) or not all(isinstance(each, list) and len(each) == 1 for each in words):
            raise ConfigError(
                f"{file}: bad_words_ids is {str(words)[:80]}; expected lists of one id each, as sequences of ids "
                "cannot be banned; remove them"
            )
        found["banned"] = tuple(number for (number,) in words)
    try:
        Sampling(**found)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return found
