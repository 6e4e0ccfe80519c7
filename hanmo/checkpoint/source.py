"""What a reader of weights offers: tensors by name, as NumPy arrays, and the dtypes they may have.

Dtypes that NumPy lacks come as their raw bits. Knows no file format, no model and no names of variables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["STORAGE", "Array", "Source", "TensorInfo", "storage_bytes"]

Array = npt.NDArray[Any]

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


def storage_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor; dtype must be a key of STORAGE."""
    return prod(shape) * np.dtype(STORAGE[dtype]).itemsize
