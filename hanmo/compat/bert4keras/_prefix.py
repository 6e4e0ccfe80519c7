"""Prefix cache of `predict`: inputs that continue those of the last call are computed from the first new token on.

Only for models without attention to later tokens. Each row continues the row of the last call that shares its longest
prefix, so rows may multiply, end and change order. The cache is one batch, not the single rows that
`hanmo.inference.prefix_cache` keeps, because `predict` runs all rows of a loop in one forward, with any inputs beside
the ids, and returns the outputs at every position.
"""

import os
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.compat.bert4keras._runners import TOKENS, Runner, outputs_of
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.inference.prefix_cache import shared_lengths

Array = npt.NDArray[Any]

_MAX_COMPARED = 1 << 26  # pairs of tokens; with more, rows are only found if each continues its own
_MIN_CAPACITY = 64
_MAX_VIEWS = 32  # each holds a file descriptor, and a process may have about a thousand


class Prefix:
    """The inputs of the last call, with their keys, values and outputs.

    most_bytes: memory limit; a call that would need more is not cached. 0 turns the cache off.
    """

    def __init__(self, config: ModelConfig, settings: Settings, runner: Runner, *, most_bytes: int = 4 << 30) -> None:
        self.most_bytes = most_bytes
        self._stack, self._runner = config.main, runner
        hidden_size = config.main.hidden_size
        self._output_size = config.vocab_size if outputs_of(config, settings)[0][0] == "logits" else hidden_size
        self._token_bytes = runner.token_bytes + 4 * max(config.vocab_size, hidden_size)
        self._lock = threading.Lock()
        self.forget()

    @staticmethod
    def supports(config: ModelConfig, settings: Settings) -> bool:
        """Tell whether a model attends to no later token and has one output, with a value for each token."""
        kinds = [kind for kind, _ in outputs_of(config, settings)]
        return settings.part != "encoder" and config.main.mask != "full" and kinds in (["logits"], ["hidden"])

    def forget(self) -> None:
        """Drop the cache."""
        self._cache: Any = None
        self._capacity = 0  # tokens of a row that have room in the cache and the pages
        self._pages: Pages | None = None  # the outputs of all tokens; None after a call for the last one's
        self._tokens: Array = np.empty((0, 0, 0), np.int64)
        self._context: list[Array] = []
        self._digests: Array = np.empty(0, np.int64)
        self._state = 0, 0

    def predict(self, inputs: dict[str, Array], *, last: bool, rows_at_once: int) -> Array | None:
        """Compute the outputs of all positions, or of the last, from the cache and the new tokens.

        rows_at_once: the most full rows in one forward.
        Returns [rows, n, …] or [rows, 1, …], which the caller may write to; None if the call cannot be cached.
        """
        with self._lock:
            return self._predict(inputs, last, rows_at_once)

    def _predict(self, inputs: dict[str, Array], last: bool, rows_at_once: int) -> Array | None:
        names = [name for name in TOKENS if name in inputs]
        tokens = np.stack([inputs[name] for name in names], -1)
        rows, count = tokens.shape[:2]
        limit = self._stack.context or sys.maxsize
        if count > limit or rows * count * self._token_bytes > self.most_bytes:
            self.forget()
            return None
        state = os.getpid(), self._runner.stamp()
        if state != self._state:  # after a fork the pages are shared with the parent
            self.forget()
        context = [value for name, value in inputs.items() if name not in names]
        digests = self._digest(context, rows)
        source, length = self._match(tokens, digests)
        if last:
            length = min(length, count - 1)  # the last token is computed again, for its output
        elif self._pages is None:
            length = 0
        if length and self._stack.mask == "prefix":
            length = _segment_start(length, self._tokens[source], tokens, names.index("Input-Segment"))
        if rows * (count - length) > rows_at_once * count:
            self.forget()
            return None
        cache, self._cache = self._cache, None  # set again after the forward, so that an error leaves nothing stale
        moved = length == 0 or rows != len(self._tokens) or bool((source != np.arange(rows)).any())
        if moved or count > self._capacity:
            moved, self._capacity = True, min(max(2 * count, _MIN_CAPACITY), limit)
        if length == 0:
            cache = self._pages = None
            cache = self._runner.new(rows, self._capacity)
        else:
            cache.cut(length)
            if moved:
                self._runner.take(cache, source, self._capacity)
        if last:
            self._pages = None
        elif self._pages is None:
            self._pages = Pages(rows, self._capacity, self._output_size)
        elif moved or length < min(count, self._pages.written):  # earlier views show what was written
            self._pages = self._pages.take(source, length, self._capacity)
        result = None if length == count else self._runner.run(inputs, start=length, kept=cache, last=last)[0]
        if self._pages is not None:
            if result is not None:
                self._pages.write(length, result)
            result = self._pages.view(count)
        self._cache, self._tokens, self._state = cache, tokens, state
        if digests is not self._digests:
            self._context, self._digests = [value.copy() for value in context], digests
        return result

    def _digest(self, context: list[Array], rows: int) -> Array:
        """Hash each row of the inputs that are not tokens, such as an encoder's output."""
        if context and len(context) == len(self._context) and all(map(np.array_equal, context, self._context)):
            return self._digests
        shapes = repr([(value.shape[1:], value.dtype) for value in context])
        return np.array([hash((shapes, *(value[row].tobytes() for value in context))) for row in range(rows)])

    def _match(self, tokens: Array, digests: Array) -> tuple[Array, int]:
        """Find the old row that each row continues, and the least number of tokens that a row shares with its own."""
        own, shorter = np.arange(len(tokens)), min(tokens.shape[1], self._tokens.shape[1])
        if self._cache is None:
            return own, 0
        if np.array_equal(digests, self._digests) and np.array_equal(tokens[:, :shorter], self._tokens[:, :shorter]):
            return own, shorter
        if len(tokens) * len(self._tokens) * shorter > _MAX_COMPARED:
            return own, 0
        shared = shared_lengths(tokens, self._tokens) * (digests[:, None] == self._digests)
        source = (2 * shared + np.eye(*shared.shape)).argmax(1)  # among equals its own row
        return source, int(shared[own, source].min())


def _segment_start(length: int, old: Array, new: Array, segment: int) -> int:
    """Shorten a prefix to where segment 0 ends in all rows: its tokens attend to each other, to later ones too."""
    starts: list[Array] = [np.all(tokens[:, :, segment] > 0, axis=0) for tokens in (old, new)]
    while length > 0 and not all(length == len(each) or each[length] for each in starts):
        length -= 1
    return length


class Pages:
    """Room for [rows, capacity, size] float32, of which `written` positions are filled; views need no copies.

    It is anonymous memory with a file descriptor: `array` maps it shared, views map it copy-on-write, so that what the
    caller writes into a view stays there.
    """

    def __init__(self, rows: int, capacity: int, size: int) -> None:
        self._shape, self.written = (rows, capacity, size), 0
        self._views: weakref.WeakSet[Any] = weakref.WeakSet()
        self._file: Any
        self.array: Array
        try:
            file = os.memfd_create("hanmo", os.MFD_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
            self._file = os.fdopen(file, "w+b")
            weakref.finalize(self, self._file.close)
            self.array = np.asarray(np.memmap(self._file, np.float32, "w+", shape=self._shape))
        except (AttributeError, OSError):  # only Linux has it, and a sandbox may forbid it: then views are copies
            self._file, self.array = None, np.empty(self._shape, np.float32)

    def view(self, length: int) -> Array:
        """Return the first `length` positions; writing into them changes neither `array` nor another view."""
        with suppress(OSError):  # no address space or descriptor left
            if self._file is not None and len(self._views) < _MAX_VIEWS:
                private = np.memmap(self._file, np.float32, "c", shape=self._shape)
                self._views.add(private.base)
                return np.asarray(private)[:, :length]
        return self.array[:, :length].copy()

    def write(self, start: int, values: Array) -> None:
        """Fill the positions from `start` on; values: [rows, n, size]."""
        self.written = start + values.shape[1]
        self.array[:, start : self.written] = values

    def take(self, rows: Array, length: int, capacity: int) -> "Pages":
        """Copy `length` positions of these rows, in this order, into new pages."""
        new = Pages(len(rows), capacity, self._shape[2])
        for i, row in enumerate(rows):
            new.array[i, :length] = self.array[row, :length]
        new.written = length
        return new
