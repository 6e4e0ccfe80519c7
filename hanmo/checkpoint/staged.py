"""Files and folders that appear complete or not at all, and the locks that tell which are abandoned.

Knows no format. The system releases a lock (flock) when its process ends; where there are none, as on Windows and some
network file systems, nothing is locked.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hanmo.errors import CheckpointError, DataError, HanmoError

# Files that belong to checkpoints, and so may be replaced with them.
_PART = re.compile(
    r"\.(safetensors|bin|pt|pth|model|index|json)$|\.data-\d{5}-of-\d{5}$|^(checkpoint|vocab\.txt|merges\.txt|.*\.meta)$"
    r"|^openvino_model\.xml$|^(configuration|modeling|tokenization)_\w+\.py$"
)
_CARD = Path(__file__).parents[1] / "assets" / "transformers" / "MODEL_CARD.md"
_LEFT = re.compile(r"\.(.+)\.[0-9a-f]{12}\.(?:partial|old)", re.DOTALL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_held: dict[Path, int] = {}  # lock file → thread that holds it


class Staged:
    """Files that are written under temporary names and renamed together when the block succeeds.

    If the block raises, they are deleted and the files of the final names stay as they were. On success, what killed
    processes left of the same files is deleted too.
    """

    def __init__(self) -> None:
        self._made: dict[Path, Path] = {}  # temporary path → the final one
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
                lock = _lock(path, create=not folder)
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
        """Delete what was made, and set the final name in an error of the system that has none or a temporary one."""
        for made in self._made:
            _remove(made)
        for parent in self._parents:
            with suppress(OSError):
                parent.rmdir()
        if not isinstance(error, OSError) or isinstance(error, HanmoError):
            return
        for made, final in self._made.items():
            if error.filename is None and error.errno in _FULL:
                error.filename = str(final)
            elif isinstance(error.filename, (str, Path)) and Path(error.filename).is_relative_to(made):
                error.filename = str(final / Path(error.filename).relative_to(made))
                del error.filename2


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
    there = sorted(path.iterdir()) if path.is_dir() else []
    if there and not overwrite:
        raise CheckpointError(f"the folder {path} is not empty; give another, or replace it with overwrite=True")
    if foreign := [file.name for file in there if not _is_part(file)]:
        raise CheckpointError(
            f"the folder {path} holds {foreign[0]}, which is no part of a checkpoint; give another folder"
        )
    with partial_folder(path) as made:
        yield made
        for file in (*made.rglob("*"), made):
            _sync(file)
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


def _is_part(file: Path) -> bool:
    """Tell whether a file belongs to a checkpoint; of model cards, only one that nobody changed does."""
    if not file.is_file():
        return False
    return bool(_PART.search(file.name)) or (file.name == "README.md" and file.read_bytes() == _CARD.read_bytes())


def clear_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes left half written in a folder, as their released locks tell.

    name: only what was to have this name; None deletes all such files, but no folders.
    """
    for path in folder.glob(".*"):
        found = _LEFT.fullmatch(path.name)
        if found is None or (path.is_dir() if name is None else found[1] != name[:200]):
            continue
        with suppress(OSError):
            lock = _lock(path)
            if lock is not None:
                _remove(path)
                os.close(lock)


@contextmanager
def exclusive(path: Path, what: Path, *, nested: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs; it holds the process's id and is deleted at the end.

    what: what the lock is for, in the message.   nested: let a thread that holds the lock pass.
    Raises DataError, naming the process, if the lock is held.
    """
    path = path.parent.resolve() / path.name
    if nested and _held.get(path) == threading.get_ident():
        yield
        return
    try:
        file = _lock(path, create=True)
    except BlockingIOError:
        owner = path.read_text("ascii", "replace").strip()
        pid = f" (pid {owner})" if owner.isdecimal() else ""
        raise DataError(f"another process is writing to {what}{pid}; wait for it, or give another --out") from None
    if file is None:
        yield
        return
    _held[path] = threading.get_ident()
    try:
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        del _held[path]
        path.unlink(missing_ok=True)
        os.close(file)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, of the system or of torch, says that there was no space to write a file."""
    if isinstance(error, RuntimeError):
        return any(word in str(error) for word in ("inline_container", "PytorchStreamWriter"))
    return isinstance(error, OSError) and error.errno in _FULL


def _lock(path: Path, *, create: bool = False) -> int | None:
    """Lock a file or folder; return the descriptor that holds the lock until it is closed, None where there are none.

    Raises BlockingIOError if another process holds the lock, FileNotFoundError if there is nothing at the path.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    while True:
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | (os.O_CREAT if create else 0)
        file = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:  # whoever held it before has just deleted it
            pass
        except BlockingIOError:
            os.close(file)
            raise
        except OSError:
            os.close(file)
            return None
        os.close(file)


def _remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file to disk, or a folder's names where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
