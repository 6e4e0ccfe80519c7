"""bert4keras.snippets of versions 0.11.5 and 0.6.0: every public name, or an error that says what to use in Hanmo.

Results are those of 0.11.5, ties and quirks included.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.compat.bert4keras._absent import Absent
from hanmo.compat.bert4keras._decoder import AutoRegressiveDecoder, softmax
from hanmo.compat.bert4keras._feeding import DataGenerator, Progress, open, parallel_apply, parallel_apply_generator
from hanmo.compat.bert4keras._web import WebServing
from hanmo.errors import DataError, TensorMismatch
from hanmo.tasks.schemes import viterbi
from hanmo.tokenizers.bert_rules import fold as lowercase_and_normalize

__all__ = [
    "AutoRegressiveDecoder", "DataGenerator", "Progress", "ViterbiDecoder", "WebServing", "basestring",
    "convert_to_str", "convert_to_unicode", "delete_arguments", "insert_arguments", "is_one_of", "is_py2",
    "is_string", "longest_common_subsequence", "longest_common_substring", "lowercase_and_normalize", "open",
    "orthogonally_resize", "parallel_apply", "parallel_apply_generator", "sequence_padding", "softmax", "strQ2B",
    "string_matching", "text_segmentate", "to_array", "truncate_sequences", "uniout",
]  # fmt: skip

Array = npt.NDArray[Any]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

is_py2 = False
basestring = str
uniout = None  # made Python 2 print Chinese


def is_string(s: Any) -> bool:
    return isinstance(s, str)


def strQ2B(ustring: str) -> str:  # bert4keras's spelling
    """Convert full-width characters to half-width ones."""
    return ustring.translate({code: code - 65248 for code in range(65281, 65375)} | {12288: 32})


def string_matching(s: str, keywords: Iterable[str]) -> bool:
    """Tell whether one of the keywords, which are regular expressions, is found in s."""
    return any(re.search(keyword, s) for keyword in keywords)


def convert_to_unicode(text: Any, encoding: str = "utf-8", errors: str = "ignore") -> Any:
    """Decode bytes; return anything else as it is."""
    return text.decode(encoding, errors) if isinstance(text, bytes) else text


convert_to_str = convert_to_unicode  # the same in Python 3


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


def insert_arguments(**arguments: Any) -> Decorator:
    """Decorate a method to accept these arguments too, and set them on its object."""

    def insert(self: Any, kwargs: dict[str, Any]) -> None:
        for name, default in arguments.items():
            setattr(self, name, kwargs.pop(name, default))

    return _preceded_by(insert)


def delete_arguments(*arguments: str) -> Decorator:
    """Decorate a method to reject these keyword arguments."""

    def reject(self: Any, kwargs: dict[str, Any]) -> None:
        for name in arguments:
            if name in kwargs:
                raise TypeError(f"{type(self).__name__} got an unexpected keyword argument '{name}'")

    return _preceded_by(reject)


def _preceded_by(step: Callable[[Any, dict[str, Any]], None]) -> Decorator:
    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def decorated(self: Any, *args: Any, **kwargs: Any) -> Any:
            step(self, kwargs)
            return method(self, *args, **kwargs)

        return decorated

    return decorate


def to_array(*args: Any) -> Any:
    """Convert arguments to arrays: one array for one argument, a list for several."""
    arrays = [np.array(arg) for arg in args]
    return arrays[0] if len(arrays) == 1 else arrays


def sequence_padding(
    inputs: Sequence[Any],
    length: int | Sequence[int] | None = None,
    value: float = 0,
    seq_dims: int = 1,
    mode: str = "post",
    padding: float | None = None,
) -> Array:
    """Pad or truncate sequences to one length and stack them.

    length: a number, or one for each of the first seq_dims axes; None is the longest.
    mode: "post" pads at the end, "pre" at the start; truncation is always at the end.   padding: value in version 0.6.
    """
    if mode not in ("post", "pre"):
        raise DataError(f"mode is {mode!r}; expected 'post' or 'pre'")
    if length is None:
        lengths = np.max([np.shape(x)[:seq_dims] for x in inputs], axis=0).tolist()
    else:
        lengths = [length] if isinstance(length, (int, np.integer)) else list(length)
    if len(lengths) < seq_dims:
        raise DataError(f"length is {length}, seq_dims {seq_dims}; expected one length for each dimension")
    fill = value if padding is None else padding
    part = slice(lengths[0]) if seq_dims == 1 else tuple(slice(size) for size in lengths[:seq_dims])
    padded = []
    for x in inputs:
        x = x[part]
        widths = [(0, 0)] * np.ndim(x)
        for axis, missing in enumerate(np.array(lengths[:seq_dims]) - np.shape(x)[:seq_dims]):
            widths[axis] = (0, missing) if mode == "post" else (missing, 0)
        padded.append(np.pad(x, widths, "constant", constant_values=fill))
    return np.array(padded)


def truncate_sequences(maxlen: int, indices: int | Sequence[int], *sequences: list[Any]) -> list[list[Any]]:
    """Shorten the longest of the lists, in place, until their lengths sum to maxlen; return those that were not empty.

    indices: of the item to remove from a list, one for all or one for each list that is not empty.
    """
    if maxlen < 0:
        raise DataError(f"maxlen is {maxlen}; expected 0 or more")
    filled = [sequence for sequence in sequences if sequence]
    where: list[int] = list(indices) if isinstance(indices, Sequence) else [indices] * len(filled)
    while sum(map(len, filled)) > maxlen:
        longest = max(range(len(filled)), key=lambda i: len(filled[i]))  # the first of equally long ones
        filled[longest].pop(where[longest])
    return filled


class ViterbiDecoder:
    """Find the best path for scores `trans` [labels, labels] from row to column; starts, ends: labels allowed there."""

    def __init__(self, trans: Array, starts: Sequence[int] | None = None, ends: Sequence[int] | None = None) -> None:
        self.trans, self.num_labels = trans, len(trans)
        labels = range(self.num_labels)
        self.non_starts = [] if starts is None else [label for label in labels if label not in starts]
        self.non_ends = [] if ends is None else [label for label in labels if label not in ends]

    def decode(self, nodes: Array) -> Array:
        """Return the best label of every step; nodes: scores [steps, labels], not modified."""
        return viterbi(nodes, self.trans, self.non_starts, self.non_ends)


def longest_common_substring(source: Any, target: Any) -> tuple[int, tuple[int, int, int, int]]:
    """Find the longest common run, the first to end: (length, (start, end in source, start, end in target))."""
    best, span = 0, (0, 0, 0, 0)
    above = [0] * (len(target) + 1)
    for i, item in enumerate(source, 1):
        above = [0, *(above[j] + 1 if item == other else 0 for j, other in enumerate(target))]
        if (length := max(above)) > best:
            j = above.index(length)
            best, span = length, (i - length, i, j - length, j)
    return best, span


def longest_common_subsequence(source: Any, target: Any) -> tuple[int, list[tuple[int, int]]]:
    """Find the longest common subsequence: (length, [(index in source, index in target), …])."""
    table = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, item in enumerate(source, 1):
        for j, other in enumerate(target, 1):
            same = table[i - 1][j - 1] + 1
            table[i][j] = same if item == other else max(table[i][j - 1], table[i - 1][j])
    length = table[-1][-1]
    pairs: list[tuple[int, int]] = []
    i, j = len(source), len(target)
    while len(pairs) < length:
        if source[i - 1] == target[j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return length, pairs[::-1]


def orthogonally_resize(a: Array, new_shape: Sequence[int], window: int = 2) -> Array:
    """Resize weights by repeating windows of them or truncating; the norm stays the same."""
    if a.ndim != len(new_shape):
        raise TensorMismatch(
            f"the array has shape {a.shape}, the new shape is {tuple(new_shape)}; expected as many sizes"
        )
    norm = np.linalg.norm(a)
    for axis, size in enumerate(new_shape):
        old = a.shape[axis]
        if size > old:
            if old % window:
                raise TensorMismatch(
                    f"size {old} of axis {axis} is no multiple of window {window}; choose another window"
                )
            times = -(-size // old)
            windows = a.reshape(*a.shape[:axis], old // window, window, *a.shape[axis + 1 :])
            a = np.repeat(windows, times, axis=axis).reshape(*a.shape[:axis], old * times, *a.shape[axis + 1 :])
        a = a[(slice(None),) * axis + (slice(size),)]
    return np.asarray(a / np.linalg.norm(a) * norm)


def __getattr__(name: str) -> Any:
    """Stand for what bert4keras's module only imported."""
    if name in ("K", "keras", "tf"):
        return Absent(f"bert4keras.snippets.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
