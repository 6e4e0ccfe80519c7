"""bert4keras.snippets of versions 0.11.5 and 0.6.0: every public name, or an error that says what to use in Hanmo."""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from hanmo.compat.bert4keras._absent import Absent
from hanmo.compat.bert4keras._decoder import AutoRegressiveDecoder, softmax
from hanmo.compat.bert4keras._feeding import DataGenerator, Progress, open, parallel_apply, parallel_apply_generator
from hanmo.compat.bert4keras._sequences import (
    ViterbiDecoder,
    longest_common_subsequence,
    longest_common_substring,
    orthogonally_resize,
    sequence_padding,
    to_array,
    truncate_sequences,
)
from hanmo.errors import Unsupported

__all__ = [
    "AutoRegressiveDecoder",
    "DataGenerator",
    "Progress",
    "ViterbiDecoder",
    "WebServing",
    "basestring",
    "convert_to_str",
    "convert_to_unicode",
    "delete_arguments",
    "insert_arguments",
    "is_one_of",
    "is_py2",
    "is_string",
    "longest_common_subsequence",
    "longest_common_substring",
    "lowercase_and_normalize",
    "open",
    "orthogonally_resize",
    "parallel_apply",
    "parallel_apply_generator",
    "sequence_padding",
    "softmax",
    "strQ2B",
    "string_matching",
    "text_segmentate",
    "to_array",
    "truncate_sequences",
    "uniout",
]

is_py2 = False
basestring = str
uniout = None  # made Python 2 print Chinese
WebServing = Absent(
    "bert4keras.snippets.WebServing",
    "it needs TensorFlow 1's sessions; call write() of hanmo.load(path) from any web framework",
)
_KERAS = {"K": "backend functions", "keras": "Keras", "tf": "TensorFlow"}


def is_string(s: Any) -> bool:
    """Tell whether s is a str."""
    return isinstance(s, str)


def strQ2B(ustring: str) -> str:  # bert4keras's spelling
    """Convert full-width characters to half-width ones."""
    return ustring.translate({code: code - 65248 for code in range(65281, 65375)} | {12288: 32})


def string_matching(s: str, keywords: Iterable[str]) -> bool:
    """Tell whether one of the keywords, regular expressions, is found in s."""
    return any(re.search(keyword, s) for keyword in keywords)


def convert_to_unicode(text: Any, encoding: str = "utf-8", errors: str = "ignore") -> Any:
    """Decode bytes; return anything else as it is."""
    return text.decode(encoding, errors) if isinstance(text, bytes) else text


convert_to_str = convert_to_unicode  # the same in Python 3


def lowercase_and_normalize(text: str) -> str:
    """Lowercase a text and remove its accents."""
    letters = unicodedata.normalize("NFD", text.lower())
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")


def text_segmentate(text: str, maxlen: int, seps: str = "\n", strips: str | None = None) -> list[str]:
    """Split a text into parts of at most maxlen characters, at the first of seps, and where needed at the next ones.

    Neighbouring pieces are joined while they fit. A piece without a separator stays longer than maxlen.
    strips: characters removed from both ends of every part, beside white space.
    """
    text = text.strip().strip(strips)
    if not seps or len(text) <= maxlen:
        return [text]
    parts, part = [], ""
    pieces = text.split(seps[0])
    for number, piece in enumerate(pieces, 1):
        if part and piece and len(part) + len(piece) > maxlen - 1:
            parts += text_segmentate(part, maxlen, seps[1:], strips)
            part = ""
        part += piece if number == len(pieces) else piece + seps[0]
    return parts + text_segmentate(part, maxlen, seps[1:], strips) if part else parts


def is_one_of(x: object, ys: Iterable[object]) -> bool:
    """Tell whether x itself, not an equal object, is among ys."""
    return any(x is y for y in ys)


def insert_arguments(**arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a method to accept these arguments too, and set them on its object."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def decorated(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name, default in arguments.items():
                setattr(self, name, kwargs.pop(name, default))
            return method(self, *args, **kwargs)

        return decorated

    return decorate


def delete_arguments(*arguments: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a method to reject these keyword arguments."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def decorated(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name in arguments:
                if name in kwargs:
                    raise TypeError(f"{type(self).__name__} got an unexpected keyword argument '{name}'")
            return method(self, *args, **kwargs)

        return decorated

    return decorate


def __getattr__(name: str) -> Any:
    """Raise Unsupported for what bert4keras's module only imported."""
    if name in _KERAS:
        raise Unsupported(
            f"bert4keras.snippets.{name} was {_KERAS[name]}, without which Hanmo works; use NumPy on what "
            "model.predict returns, or torch on the modules of hanmo.load(path)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
