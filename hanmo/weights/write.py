"""What all writers of weights share: tensors as they are handed over, and files written beside and renamed.

Knows nothing of any format. A file that was not finished is never seen under its final name.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np

from hanmo.errors import CheckpointError
from hanmo.weights.source import STORAGE, Array, Source, TensorInfo, storage_bytes

# Files that belong to checkpoints, and so may be replaced with them.
_PART = re.compile(
    r"\.(safetensors|bin|pt|pth|model|index|json)$|\.data-\d{5}-of-\d{5}$|^(checkpoint|vocab\.txt|merges\.txt|.*\.meta)$"
)

__all__ = ["Item", "Staged", "atomic_folder", "atomic_path", "describe", "items_of", "raw_chunks"]

Item: TypeAlias = "tuple[str, Array | tuple[TensorInfo, Iterable[Array | bytes]]]"
"""One tensor to write: (name, array), or (name, (info, chunks)) where the chunks' bytes make the tensor in C
order. Chunks may be lazy, so that a checkpoint is written without being held; dtypes that NumPy lacks are given
so, with their raw bits."""


def items_of(source: Source) -> Iterator[Item]:
    """Yield every tensor of an open checkpoint to write, read lazily and given back once written."""

    def chunks(name: str) -> Iterator[Array]:
        yield source.read(name)
        source.release(name)

    for name in source.in_file_order:
        yield name, (source.tensors[name], chunks(name))


def describe(item: Item) -> tuple[TensorInfo, Iterable[Array | bytes]]:
    """Return (info, chunks) of a tensor to write; the info bears the item's name.

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
    if array.dtype.kind == "O" or array.dtype.kind == "S":
        return TensorInfo(name, "string", array.shape, 0), [array]
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


class Staged:
    """Files that are written under passing names and get their final ones together, when the block ends well.

    If the block raises, they are deleted and what stood under the final names stays as it was.
    """

    def __init__(self) -> None:
        self._made: list[Path] = []
        self._placed: list[tuple[Path, Path]] = []

    def new(self, beside: Path) -> Path:
        """Return a path in the folder of `beside` to write to; the folder is made if it is not there."""
        beside.parent.mkdir(parents=True, exist_ok=True)
        path = beside.with_name(f".{beside.name[:200]}.{secrets.token_hex(6)}.partial")
        self._made.append(path)
        return path

    def place(self, made: Path, final: Path) -> None:
        """Have a file of `new` renamed to `final`; renaming goes in the order of these calls."""
        self._placed.append((made, final))

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for made, _ in self._placed:
                    _sync(made)
                for made, final in self._placed:
                    made.replace(final)
                for folder in {final.parent for _, final in self._placed}:
                    _sync(folder)
        finally:
            for made in self._made:
                made.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path to write a file to, which becomes `path` when the block ends well and is deleted otherwise."""
    with Staged() as staged:
        made = staged.new(path)
        yield made
        staged.place(made, path)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a new folder to fill, which becomes `path` when the block ends well and is deleted otherwise.

    overwrite: replace a folder that holds a checkpoint; the old one is deleted once the new one stands.
    Raises CheckpointError if `path` is a file, holds something and may not be overwritten, or holds anything that is
    no part of a checkpoint, which would be lost.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; give the path of a new folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise CheckpointError(f"the folder {path} is not empty; give another, or allow it to be overwritten")
    foreign = path.is_dir() and next(
        (p.name for p in sorted(path.iterdir()) if p.is_dir() or not _PART.search(p.name)), ""
    )
    if foreign:
        raise CheckpointError(
            f"the folder {path} holds {foreign}, which is no part of a checkpoint; give another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(6)
    made, old = (path.with_name(f".{path.name}.{token}.{word}") for word in ("partial", "old"))
    made.mkdir()
    try:
        yield made
        for file in made.rglob("*"):
            _sync(file)
        _sync(made)
        if path.is_dir():
            path.rename(old)
        made.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk take a file, or a folder's names where the system lets one ask for that."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
