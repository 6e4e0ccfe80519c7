"""Texts as windows of ids: offsets into the text handed in, overlapping windows of long texts, which window decides.

    tokens     0 ............................ n
    window 1   [                ]
    window 2            [                ]           the next window starts `stride` tokens later
    window 3                     [       ]
    decides    1111111111112222222233333333          the window in which a token is farthest from an edge

Nothing is cut off. Knows tokenizers; knows no model and no kind of task.
"""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product, takewhile
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import ConfigError
from hanmo.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text without marks.

    offsets: text[start:stop] of each token, in code points; empty unless they were asked for.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def characters(self, start: int, stop: int) -> tuple[int, int]:
        """Return the (start, stop) in code points of the tokens start … stop - 1."""
        return self.offsets[start][0], self.offsets[stop - 1][1]

    def find(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return the tokens (start, stop) of text[start:stop]; None if a token crosses one of its ends.

        Characters without a token, such as spaces, may surround them.
        """
        first, last = self.cover(start, stop)
        if first == last or self.offsets[first][0] < start or self.offsets[last - 1][1] > stop:
            return None
        return first, last

    def cover(self, start: int, stop: int) -> tuple[int, int]:
        """Return the fewest tokens (start, stop) that contain text[start:stop]; (0, 0) if none has a part of it."""
        first = bisect_right(self.offsets, start, key=itemgetter(1))
        last = bisect_left(self.offsets, stop, key=itemgetter(0))
        return (first, last) if first < last else (0, 0)


@dataclass(frozen=True)
class Part:
    """The tokens start … stop - 1 of one text, at ids[at:] of a window."""

    at: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def place(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return where the text's tokens start … stop - 1 are in the window's ids; None unless it has them all."""
        if start < self.start or stop > self.stop:
            return None
        return self.at + start - self.start, self.at + stop - self.start


@dataclass(frozen=True)
class Window:
    """Ids that the model reads at once.

    ids, segments: with the marks.   parts: one of each text of the row.
    """

    ids: list[int]
    segments: list[int]
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(tokenizer: Tokenizer, text: str, *, offsets: bool = False) -> Tokens:
    """Encode a text without marks. A token's offsets include combining marks that follow it, as in 'é' of two codes."""
    encoding = tokenizer.encode(text, ends=False, detail=offsets)
    return Tokens(text, encoding.ids, _with_marks(text, encoding.offsets or []))


def _with_marks(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found = []
    for number, (start, stop) in enumerate(offsets):
        limit = offsets[number + 1][0] if number + 1 < len(offsets) else len(text)
        while stop < limit and unicodedata.category(text[stop]) in ("Mn", "Me"):
            stop += 1
        found.append((start, stop))
    return found


def make_windows(
    tokenizer: Tokenizer, texts: Sequence[Tokens], *, max_length: int, stride: int | None = None
) -> list[Window]:
    """Cover one text, or two, with windows of at most `max_length` ids.

    Of a pair that is too long the shorter text is repeated in each window of the longer, up to half of a window; if
    both are longer, every window of one meets every window of the other.
    stride: as in `TaskConfig`; where a window has less room for the longer text of a pair, it is that room.
    Raises ConfigError if no token fits between the marks, or a stride is longer than a window.
    """
    marks = _Marks(tokenizer, len(texts))
    room = max_length - marks.count
    if room < len(texts):
        raise ConfigError(f"max_length is {max_length}; {marks.count} marks leave no room for a text of each row")
    if stride is not None and stride > room:
        raise ConfigError(f"stride is {stride}; expected at most {room}, the tokens that a window has room for")
    rooms = _rooms([len(tokens) for tokens in texts], room)
    pieces = [_pieces(len(tokens), size, stride) for tokens, size in zip(texts, rooms, strict=True)]
    return [marks.join([t.ids[a:b] for t, (a, b) in zip(texts, each, strict=True)], each) for each in product(*pieces)]


def deciding(windows: Sequence[Window], start: int, stop: int, *, text: int = 0) -> int | None:
    """Return the number of the window that decides about the tokens start … stop - 1; None if no window has them all.

    It is the one in which they are farthest from an edge that is not the text's own; of equals the first.
    text: which text of the row.
    """
    length = max(window.parts[text].stop for window in windows)
    best: tuple[int, int] | None = None
    for number, window in enumerate(windows):
        part = window.parts[text]
        if part.start <= start and stop <= part.stop:
            margin = min(*_margins(part, start, stop, length))
            if best is None or margin > best[0]:
                best = margin, number
    return None if best is None else best[1]


def decides(windows: Sequence[Window], number: int, start: int, stop: int) -> bool:
    """Return whether window `number`, which has these tokens of a row's only text, is the `deciding` one.

    It looks at the windows beside it alone, so that many questions about a long text stay cheap.
    """
    length = windows[-1].parts[0].stop

    def margins(numbers: Iterable[int]) -> Iterator[int]:
        parts = (windows[each].parts[0] for each in numbers)
        around = takewhile(lambda part: part.start <= start and stop <= part.stop, parts)
        return (min(*_margins(part, start, stop, length)) for part in around)

    (own,) = margins([number])
    before, after = margins(range(number - 1, -1, -1)), margins(range(number + 1, len(windows)))
    return all(margin < own for margin in before) and all(margin <= own for margin in after)


def merge_tokens(windows: Sequence[Window], arrays: Sequence[NDArray[Any]], *, text: int = 0) -> NDArray[Any]:
    """Join what was computed for the ids of each window, [n, …], to what is known of each token of a text [tokens, …].

    Each token's values are those of its deciding window.
    """
    if len(windows) == 1:
        part = windows[0].parts[text]
        return arrays[0][part.at : part.at + len(part)]
    length = max(window.parts[text].stop for window in windows)
    merged = np.empty((length, *arrays[0].shape[1:]), arrays[0].dtype)
    best = np.full(length, -1)
    for window, array in zip(windows, arrays, strict=True):
        part = window.parts[text]
        tokens = np.arange(part.start, part.stop)
        margin = np.minimum(*_margins(part, tokens, tokens + 1, length))
        better = margin > best[tokens]
        best[tokens[better]] = margin[better]
        merged[tokens[better]] = array[part.at : part.at + len(part)][better]
    return merged


def _margins(part: Part, start: Any, stop: Any, length: int) -> tuple[Any, Any]:
    """Return how far tokens, numbers or arrays, are from the edges of a part; those of the text are `length` away."""
    left = start - part.start if part.start else 0 * start + length
    return left, part.stop - stop if part.stop < length else 0 * stop + length


class _Marks:
    """The ids around one text or a pair, taken from how the tokenizer encodes an empty one."""

    def __init__(self, tokenizer: Tokenizer, texts: int) -> None:
        special = tokenizer.special
        self.start = [] if special.start is None else [special.start]
        self.end = [] if special.end is None else [special.end]
        self.between: list[int] = []
        if texts == 2:
            both = len(tokenizer.encode("", "", ends=True).ids)
            self.between = self.end * (both - len(self.start) - len(self.end))
        self.count = len(self.start) + len(self.between) + len(self.end)

    def join(self, pieces: Sequence[list[int]], places: Sequence[tuple[int, int]]) -> Window:
        first = [*self.start, *pieces[0], *(self.between if len(pieces) == 2 else self.end)]
        second = [*pieces[1], *self.end] if len(pieces) == 2 else []
        starts = (len(self.start), len(first))
        parts = tuple(Part(at, *place) for at, place in zip(starts, places, strict=False))
        return Window(first + second, [0] * len(first) + [1] * len(second), parts)


def _rooms(lengths: Sequence[int], room: int) -> list[int]:
    """Return the tokens of each text that fit a window at once."""
    if len(lengths) == 1 or sum(lengths) <= room:
        return [room] if len(lengths) == 1 else list(lengths)
    shorter = min(min(lengths), room // 2)
    return [room - shorter, shorter] if lengths[0] > lengths[1] else [shorter, room - shorter]


def _pieces(length: int, room: int, stride: int | None) -> list[tuple[int, int]]:
    step = min(stride or max(1, room * 3 // 4), max(1, room))
    found = [(0, min(length, room))]
    while found[-1][1] < length:
        start = found[-1][0] + step
        found.append((start, min(length, start + room)))
    return found
