"""`bert4keras.snippets` of versions 0.11.5 and 0.6.0: every public name, or an error that names Hanmo's way.

Joins the helpers by their old names; the work is done in the private files beside this one.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

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
from hanmo.compat.bert4keras._strings import (
    convert_to_str,
    convert_to_unicode,
    is_string,
    lowercase_and_normalize,
    string_matching,
    strQ2B,
    text_segmentate,
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
uniout = None  # made Python 2 print Chinese; importing it does nothing in Python 3

_KERAS = {"K": "backend functions", "keras": "Keras", "tf": "TensorFlow"}


def is_one_of(x: object, ys: Iterable[object]) -> bool:
    """Say whether x itself, not an equal, is among ys."""
    return any(x is y for y in ys)


def insert_arguments(**arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a method so that it takes these arguments too and sets them on its object."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def decorated(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name, default in arguments.items():
                setattr(self, name, kwargs.pop(name, default))
            return method(self, *args, **kwargs)

        return decorated

    return decorate


def delete_arguments(*arguments: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a method so that it refuses these keyword arguments, as Python refuses unknown ones."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def decorated(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name in arguments:
                if name in kwargs:
                    raise TypeError(f"{type(self).__name__} got an unexpected keyword argument '{name}'")
            return method(self, *args, **kwargs)

        return decorated

    return decorate


class WebServing:
    """Not supported: it served functions by the bottle package and a TensorFlow session."""

    def __init__(self, host: str = "0.0.0.0", port: int = 8000, server: str = "paste") -> None:
        """Raise Unsupported."""
        raise Unsupported(
            f"WebServing(host={host!r}, port={port}, server={server!r}) is not supported: it needs TensorFlow 1's "
            "sessions; load the model with hanmo.load(path) and call its write() from any web framework"
        )


def __getattr__(name: str) -> Any:
    """Name Hanmo's way for what bert4keras's module merely imported."""
    if name in _KERAS:
        raise Unsupported(
            f"bert4keras.snippets.{name} was {_KERAS[name]}, without which Hanmo works; use NumPy on what "
            "model.predict returns, or torch on the modules of hanmo.load(path)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
