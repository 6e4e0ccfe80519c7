"""What all writers of weights share: the form of tensors to write, and files renamed once they are complete.

Knows no format. An unfinished file is never seen under its final name.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np

from hanmo.checkpoint.lock import acquire
from hanmo.checkpoint.source import STORAGE, Array, Source, TensorInfo, storage_bytes
from hanmo.errors import CheckpointError, HanmoError

# Files that belong to checkpoints, and so may be replaced with them.
_PART = re.compile(
    r"\.(safetensors|bin|pt|pth|model|index|json)$|\.data-\d{5}-of-\d{5}$|^(checkpoint|vocab\.txt|merges\.txt|.*\.meta)$"
)

_LEFT = re.compile(r"\.(.+)\.[0-9a-f]{12}\.(?:partial|old)", re.DOTALL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

__all__ = [
    "Item",
    "Staged",
    "atomic_folder",
    "atomic_path",
    "clear_abandoned",
    "describe",
    "is_disk_full",
    "items_of",
    "partial_folder",
    "raw_chunks",
]

Item: TypeAlias = "tuple[str, Array | tuple[TensorInfo, Iterable[Array | bytes]]]"
"""One tensor to write: (name, array), or (name, (info, chunks)) where the chunks are its bytes in C order.

Chunks may be lazy, so that a checkpoint is never held in memory. Dtypes that NumPy lacks are given as raw bits.
"""


def items_of(source: Source) -> Iterator[Item]:
    """Yield every tensor of an open checkpoint to write, read lazily and given back once written."""

    def chunks(name: str) -> Iterator[Array]:
        yield source.read(name)
        source.release(name)

    for name in source.in_file_order:
        yield name, (source.tensors[name], chunks(name))


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


class Staged:
    """Files that are written under temporary names and renamed together when the block succeeds.

    If the block raises, they are deleted and the files of the final names stay as they were. On success, what killed
    processes left of the same files is deleted too.
    """

    def __init__(self) -> None:
        self._made: dict[Path, Path] = {}  # what is written → what it is to be called
        self._locks: list[int] = []
        self._parents: list[Path] = []
        self._placed: list[tuple[Path, Path]] = []

    def new(self, beside: Path, *, folder: bool = False) -> Path:
        """Return a new file or folder to write to, locked by this process; folders above `beside` are made."""
        self._parents += [parent for parent in beside.parents if not parent.exists()]
        beside.parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = beside.with_name(f".{beside.name[:200]}.{secrets.token_hex(6)}.partial")
            if folder:
                path.mkdir()
            try:
                lock = acquire(path, create=not folder)
            except (BlockingIOError, FileNotFoundError):  # another process has just taken it for abandoned
                continue
            self._made[path] = beside
            self._locks += [] if lock is None else [lock]
            return path

    def place(self, made: Path, final: Path) -> None:
        """Rename a file of `new` to `final` at the end, in the order of these calls."""
        self._placed.append((made, final))

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
            else:
                self._undo(error)
        except BaseException as failed:
            self._undo(failed)
            raise
        finally:
            for lock in self._locks:
                os.close(lock)

    def _finish(self) -> None:
        for made, _ in self._placed:
            _sync(made)
        for made, final in self._placed:
            made.replace(final)
        for folder in {final.parent for _, final in self._placed}:
            _sync(folder)
        for made, beside in self._made.items():
            _remove(made)
            clear_abandoned(beside.parent, beside.name)

    def _undo(self, error: BaseException) -> None:
        _remove(*self._made, parents=self._parents)
        _name(error, self._made)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to, which becomes `path` when the block succeeds and is deleted otherwise."""
    with Staged() as staged:
        made = staged.new(path)
        yield made
        staged.place(made, path)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` to fill and rename; what is left of it is deleted when the block ends.

    If the block raises, parents that were made for it are deleted too, and errors of the system name `path`.
    """
    with Staged() as staged:
        yield staged.new(path, folder=True)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes `path` when the block succeeds and is deleted otherwise.

    overwrite: replace a folder that holds a checkpoint; the old one is deleted last.
    Raises CheckpointError if `path` is a file, is not empty and may not be overwritten, or holds anything that is
    no part of a checkpoint, which would be lost.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; give the path of a new folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise CheckpointError(f"the folder {path} is not empty; give another, or replace it with overwrite=True")
    foreign = path.is_dir() and next(
        (p.name for p in sorted(path.iterdir()) if p.is_dir() or not _PART.search(p.name)), ""
    )
    if foreign:
        raise CheckpointError(
            f"the folder {path} holds {foreign}, which is no part of a checkpoint; give another folder"
        )
    with partial_folder(path) as made:
        yield made
        for file in made.rglob("*"):
            _sync(file)
        _sync(made)
        old = made.with_suffix(".old")
        try:
            if path.is_dir():
                path.rename(old)
            made.rename(path)
            _sync(path.parent)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            _remove(old)


def clear_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes left half written in a folder, as their released locks tell.

    name: only what was to have this name; None deletes all such files, but no folders.
    """
    for path in folder.glob(".*"):
        found = _LEFT.fullmatch(path.name)
        if found is None or (path.is_dir() if name is None else found[1] != name[:200]):
            continue
        with suppress(OSError):
            lock = acquire(path)
            if lock is not None:
                _remove(path)
                os.close(lock)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, of the system or of torch, says that there was no space to write a file."""
    if isinstance(error, RuntimeError):
        return any(word in str(error) for word in ("inline_container", "PytorchStreamWriter"))
    return isinstance(error, OSError) and error.errno in _FULL


def _remove(*paths: Path, parents: Sequence[Path] = ()) -> None:
    """Delete files and folders where they are there, and then the parents that are empty."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for parent in parents:
        with suppress(OSError):
            parent.rmdir()


def _name(error: BaseException, finals: Mapping[Path, Path]) -> None:
    """Set the final name as the file name of an error of the system that has none, or a temporary one."""
    if not isinstance(error, OSError) or isinstance(error, HanmoError):
        return
    for made, final in finals.items():
        if error.filename is None and error.errno in _FULL:
            error.filename = str(final)
        elif isinstance(error.filename, (str, Path)) and Path(error.filename).is_relative_to(made):
            error.filename = str(final / Path(error.filename).relative_to(made))
            del error.filename2


def _sync(path: Path) -> None:
    """Flush a file to disk, or a folder's names where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
