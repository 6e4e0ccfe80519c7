"""An array that grows along its second axis and is handed out without a copy, each view as private as a copy.

rows × capacity × hidden_size, in memory that has a file descriptor
whole ── mapped shared: what is written here is kept
view  ── mapped copy-on-write: what somebody writes into a view stays in that view
"""

import mmap
import os
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Each mapping that is alive holds a file descriptor, and processes may have some thousand.
_MOST_VIEWS = 32


class Pages:
    """Room for [rows, capacity, hidden_size] float32, of which `written` positions are filled."""

    def __init__(self, rows: int, capacity: int, hidden_size: int) -> None:
        self.capacity = capacity
        self.written = 0
        self._shape = (rows, capacity, hidden_size)
        self._size = rows * capacity * hidden_size * 4
        self._views: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._file: int | None = None
        self.whole: Array
        try:
            self._file = os.memfd_create("hanmo", os.MFD_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
            weakref.finalize(self, os.close, self._file)
            os.ftruncate(self._file, self._size)
            self.whole = self._array(mmap.mmap(self._file, self._size))
        except (AttributeError, OSError):  # only Linux has it, and a sandbox may forbid it: then views are copies
            self._file = None
            self.whole = np.empty(self._shape, np.float32)

    def view(self, length: int) -> Array:
        """Give the first `length` positions, writable, apart from `whole` and from every other view."""
        if self._file is not None and len(self._views) < _MOST_VIEWS:
            try:
                private = mmap.mmap(self._file, self._size, access=mmap.ACCESS_COPY)
            except OSError:  # no address space or descriptor left
                return self.whole[:, :length].copy()
            self._views.add(private)
            return self._array(private)[:, :length]
        return self.whole[:, :length].copy()

    def write(self, start: int, values: Array) -> None:
        """Fill the positions from `start` on; [rows, n, hidden_size]. Those before `written` stay."""
        self.written = start + values.shape[1]
        self.whole[:, start : self.written] = values

    def taken(self, rows: Array, length: int, capacity: int) -> "Pages":
        """Copy these rows, in this order, up to `length` into new pages."""
        new = Pages(len(rows), capacity, self._shape[2])
        for i, row in enumerate(rows):
            new.whole[i, :length] = self.whole[row, :length]
        new.written = length
        return new

    def _array(self, memory: mmap.mmap) -> Array:
        return np.frombuffer(memory, np.float32).reshape(self._shape)
