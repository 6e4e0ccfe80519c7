"""Advisory locks on files and folders, released by the system when the process that holds them ends.

Knows flock. Windows has no such locks, nor have some network file systems: there nothing is locked.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanmo.errors import DataError

__all__ = ["acquire", "exclusive"]

_held: dict[Path, int] = {}  # lock file → thread that holds it


def acquire(path: Path, *, create: bool = False) -> int | None:
    """Lock a file or folder; return the descriptor that holds the lock until it is closed, None where there are none.

    create: make the file if it is not there.
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
        file = acquire(path, create=True)
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
