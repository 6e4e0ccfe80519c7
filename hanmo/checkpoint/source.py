"""What readers of weights return and writers take: tensors by name, as NumPy arrays, and the dtypes they may have.

Dtypes that NumPy lacks are given as their raw bits. Knows no file format, no model and no names of variables.
"""

from __future__ import annotations

import errno
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hanmo.errors import CheckpointError, CorruptFile, MemoryPlanError, MissingFile
from hanmo.files import open_file

if TYPE_CHECKING:
    from typing_extensions import Self

Array = npt.NDArray[Any]
_MAX_RANK = 32  # NumPy 1's limit

STORAGE: Mapping[str, str] = {
    **{name: name for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("float16", "float32", "float64", "complex64", "complex128")},
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
}
"""Our dtype name -> the NumPy dtype that `Source.read` returns for it (raw bits where the two differ)."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor: its name, dtype, shape and size in the file.

    dtype: a key of STORAGE, or the name of a dtype ("string", …) that can be listed but not read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def storage(self) -> np.dtype[Any]:
        """The NumPy dtype of its bytes."""
        return np.dtype(STORAGE[self.dtype])


Item: TypeAlias = "tuple[str, Array | tuple[TensorInfo, Iterable[Array | bytes]]]"
"""One tensor to write: (name, array), or (name, (info, chunks)) where the chunks are its bytes in C order.

Chunks may be lazy, so that a checkpoint is never held in memory. Dtypes that NumPy lacks are given as raw bits.
"""


class Source(ABC):
    """A checkpoint that is open for reading, and a context manager; see `hanmo.checkpoint.open.open_source`.

    tensors: every tensor by its name, sorted by name.
    in_file_order: the names in the order of their bytes; reading them so is one sequential pass over the files.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    in_file_order: Sequence[str]

    @abstractmethod
    def read(self, name: str) -> Array:
        """Return one tensor, writable: a copy-on-write view of the file where its layout allows, else a copy.

        The dtype is `STORAGE[info.dtype]`. Writing into the array never changes the file. The view stays
        valid after `close`. Raises KeyError for an unknown name, CorruptFile for damaged bytes and
        MissingFile for a shard that is not there.
        """

    def release(self, name: str) -> None:  # noqa: B027
        """Tell the kernel that this tensor's mapped pages are not needed now.

        Views stay valid and are read from the file again when touched; what was written into them is lost.
        """

    def close(self) -> None:  # noqa: B027
        """Close the files; arrays that were read stay valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class MappedFile:
    """A private (copy-on-write) memory map of a file; writing into its views changes memory only.

    Touched pages count as the process's memory until `release`. Views keep the map alive.
    Raises MissingFile, naming the file, if it is not there.
    """

    def __init__(self, path: Path) -> None:
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
        flat = self.raw(offset, storage_bytes(dtype, shape))
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


def storage_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor; dtype must be a key of STORAGE."""
    return prod(shape) * np.dtype(STORAGE[dtype]).itemsize


def check_shape(shape: Sequence[int], where: str, advice: str = "") -> None:
    """Raise CorruptFile for a shape that a file claims and NumPy cannot hold, even if the tensor is empty."""
    if len(shape) > _MAX_RANK or prod(size for size in shape if size) >= 1 << 59:
        raise CorruptFile(f"{where} claims the shape {str(list(shape))[:200]}, more than any memory holds{advice}")


def describe(item: Item) -> tuple[TensorInfo, Iterable[Array | bytes]]:
    """Return (info, chunks) of a tensor to write; the info has the item's name.

    Raises CheckpointError for an array or a claimed size that no format could hold.
    """
    name, value = item
    if isinstance(value, tuple):
        info, chunks = value
        if info.dtype in STORAGE and storage_bytes(info.dtype, info.shape) != info.nbytes:
            expected = storage_bytes(info.dtype, info.shape)
            raise CheckpointError(
                f"tensor {name!r} claims {info.nbytes:,} bytes; {info.dtype}{list(info.shape)} takes {expected:,}"
            )
        return TensorInfo(name, info.dtype, info.shape, info.nbytes), chunks
    array = np.asarray(value)
    dtype = array.dtype.name
    if dtype not in STORAGE:
        raise CheckpointError(
            f"tensor {name!r} is of NumPy dtype {array.dtype}, which checkpoints do not hold; convert it to one "
            f"of {', '.join(STORAGE)}"
        )
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return TensorInfo(name, dtype, array.shape, array.nbytes), [native]


def raw_chunks(info: TensorInfo, chunks: Iterable[Array | bytes]) -> Iterator[Array]:
    """Yield the chunks as flat uint8 arrays, and check that together they make the tensor.

    Raises CheckpointError if they hold more or fewer bytes than `info.nbytes`.
    """
    total = 0
    for chunk in chunks:
        if isinstance(chunk, np.ndarray):
            raw = np.asarray(chunk, order="C").reshape(-1).view(np.uint8)
        else:
            raw = np.frombuffer(chunk, np.uint8)
        total += raw.nbytes
        if total <= info.nbytes:
            yield raw
    if total != info.nbytes:
        raise CheckpointError(f"tensor {info.name!r} was given {total:,} bytes; {info.nbytes:,} were announced")
