"""A file as a private (copy-on-write) memory map, and views into it."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np

from hanmo.checkpoint.source import STORAGE, Array
from hanmo.errors import CorruptFile, MemoryPlanError, MissingFile
from hanmo.files import open_file

__all__ = ["MappedFile"]


class MappedFile:
    """One mapped file; writing into its views changes memory only.

    Touched pages count as the process's memory until `release`. Views keep the map alive.
    """

    def __init__(self, path: Path) -> None:
        """Map the file. Raises MissingFile, naming it, if it is not there."""
        self.path = path
        try:
            with open_file(path) as file:
                self.size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else None
        except FileNotFoundError:
            raise MissingFile(
                f"{path} is missing; the checkpoint needs it: download it again into {path.parent}"
            ) from None
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MemoryPlanError(
                f"{path} has {self.size:,} bytes, more than the system lets this process map"
            ) from None
        self._bytes = np.frombuffer(self._map, np.uint8) if self._map is not None else np.empty(0, np.uint8)

    def raw(self, offset: int, nbytes: int) -> Array:
        """Return a view of some bytes as uint8. Raises CorruptFile if the file does not hold them."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CorruptFile(
                f"{self.path} holds {self.size:,} bytes, but {nbytes:,} bytes at {offset:,} were asked for; "
                "the file is cut short or not the one meant"
            )
        return self._bytes[offset : offset + nbytes]

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """Return a dense tensor: a view if its offset suits the dtype, else a copy; see `Source.read`."""
        storage = np.dtype(STORAGE[dtype])
        flat = self.raw(offset, int(np.prod(shape, dtype=object)) * storage.itemsize)
        if offset % storage.alignment:
            flat = flat.copy()
            self.release(offset, flat.nbytes)
        return flat.view(storage).reshape(shape)

    def release(self, offset: int, nbytes: int) -> None:
        """Release the complete pages inside these bytes; what was written into them is lost."""
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if offset + nbytes == self.size:
            stop = self.size
        if self._map is not None and stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)
