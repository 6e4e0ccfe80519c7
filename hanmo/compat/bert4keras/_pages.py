"""An array that grows along its second axis and is returned without a copy, each view as private as a copy.

The array is in anonymous memory with a file descriptor: `array` maps it shared, and views map it copy-on-write, so that
what the caller writes into a view stays in that view.
"""

import mmap
import os
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Each live mapping holds a file descriptor, and a process may have about a thousand.
_MAX_VIEWS = 32


class Pages:
    """Room for [rows, capacity, hidden_size] float32, of which `written` positions are filled."""

    def __init__(self, rows: int, capacity: int, hidden_size: int) -> None:
        self.capacity, self.written = capacity, 0
        self._shape = (rows, capacity, hidden_size)
        self._size = rows * capacity * hidden_size * 4
        self._views: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._file: int | None = None
        self.array: Array
        try:
            self._file = os.memfd_create("hanmo", os.MFD_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
            weakref.finalize(self, os.close, self._file)
            os.ftruncate(self._file, self._size)
            self.array = self._map(mmap.mmap(self._file, self._size))
        except (AttributeError, OSError):  # only Linux has it, and a sandbox may forbid it: then views are copies
            self._file = None
            self.array = np.empty(self._shape, np.float32)

    def view(self, length: int) -> Array:
        """Return the first `length` positions; writing into them changes neither `array` nor another view."""
        with suppress(OSError):  # no address space or descriptor left
            if self._file is not None and len(self._views) < _MAX_VIEWS:
                private = mmap.mmap(self._file, self._size, access=mmap.ACCESS_COPY)
                self._views.add(private)
                return self._map(private)[:, :length]
        return self.array[:, :length].copy()

    def write(self, start: int, values: Array) -> None:
        """Fill the positions from `start` on; values: [rows, n, hidden_size]."""
        self.written = start + values.shape[1]
        self.array[:, start : self.written] = values

    def taken(self, rows: Array, length: int, capacity: int) -> "Pages":
        """Copy `length` positions of these rows, in this order, into new pages."""
        new = Pages(len(rows), capacity, self._shape[2])
        for i, row in enumerate(rows):
            new.array[i, :length] = self.array[row, :length]
        new.written = length
        return new

    def _map(self, memory: mmap.mmap) -> Array:
        return np.frombuffer(memory, np.float32).reshape(self._shape)
