"""An array that grows along its second axis and is returned without a copy, each view as private as a copy.

The array is in anonymous memory with a file descriptor: `array` maps it shared, and views map it copy-on-write, so that
what the caller writes into a view stays in that view.
"""

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
    """Room for [rows, capacity, size] float32, of which `written` positions are filled."""

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
