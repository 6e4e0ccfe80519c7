"""Read untrusted files: regular files of bounded size, JSON, and the errors of the libraries that parse them.

Every reader of the package opens files here.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hanmo.errors import CorruptFile, HanmoError, MemoryPlanError, MissingFile

MAX_BYTES = 256 << 20
"""Default limit of the bytes of a file that is read into memory."""

MAX_JSON = 16 << 20
"""The same for JSON, whose objects take up to 25 times the bytes of the text."""

_LFS, _LFS_LIMIT = b"version https://git-lfs.github.com/spec/", 1024

_NO_MEMORY = ("not enough memory", "can't allocate memory", "bad_alloc", "bad allocation", "cannot allocate memory")


def open_file(path: Path, *, error: type[HanmoError] = CorruptFile, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading; never waits, as opening a FIFO would.

    Raises MissingFile if there is none, `error` for a folder, a FIFO, a socket or a device, and for a git-lfs pointer.
    """
    try:
        file: Any = open(path, "rb", buffering, opener=_open)
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            if status.st_size > _LFS_LIMIT or file.read(len(_LFS)) != _LFS:
                file.seek(0)
                return file
            file.close()
            raise error(
                f"{path} is a git-lfs pointer of {status.st_size} bytes, not the file itself; "
                f"fetch it by 'git lfs pull', or download it again"
            )
        file.close()
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing") from None
    except OSError as fault:
        if fault.errno not in (errno.EISDIR, errno.ENXIO):  # a folder, a socket
            raise
    raise error(f"{path} is a folder, a FIFO or a device; expected a regular file")


def read_bytes(path: Path, *, error: type[HanmoError] = CorruptFile, limit: int = MAX_BYTES) -> bytes:
    """Read a file into memory. Raises what `open_file` does, and `error` for one of more than `limit` bytes."""
    with open_file(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path} has {size:,} bytes; expected at most {limit:,} for a file of this kind")
        return file.read(size)


def read_json(
    path: Path,
    *,
    error: type[HanmoError] = CorruptFile,
    kind: type = dict,
    unique: bool = False,
    limit: int = MAX_JSON,
    advice: str = "",
) -> Any:
    """Read a JSON file; see `parse_json`. Raises what `read_bytes` does too."""
    return parse_json(
        read_bytes(path, error=error, limit=limit), str(path), error=error, kind=kind, unique=unique, advice=advice
    )


def parse_json(
    text: bytes | str,
    where: str,
    *,
    error: type[HanmoError] = CorruptFile,
    kind: type = dict,
    unique: bool = False,
    advice: str = "",
) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark.

    where: names the text in messages.   kind: the type expected at the top.   unique: refuse a key given twice.
    advice: ends each message, with its own punctuation.
    Raises `error` for anything else, half of a surrogate pair and nesting that is too deep included.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise error(f"{where} holds {twice[:200]!r} twice{advice}")
        return found

    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=once if unique else None)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except HanmoError:
        raise
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not JSON: it is not UTF-8 at byte {fault.start}; save it as UTF-8{advice}") from None
    except UnicodeEncodeError:
        raise error(f"{where} is not JSON: it holds half of a surrogate pair, which is no character{advice}") from None
    except RecursionError:
        raise error(f"{where} is not JSON: it is nested too deeply{advice}") from None
    except ValueError as fault:
        raise error(f"{where} is not JSON: {fault}{advice}") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise error(f"{where} holds a {type(value).__name__}; expected a JSON {expected}{advice}")
    return value


@contextmanager
def errors_as(error: type[HanmoError], message: str, *, advice: str = "") -> Iterator[None]:
    """Turn what another library raises over the contents of a file into `error`; wrap nothing but its calls.

    message: what is wrong; the library's own first sentence follows.   advice: ends the message.
    Our own errors, signals and the system's errors about files pass; memory that ran out is a MemoryPlanError.
    """
    try:
        yield
    except (HanmoError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as fault:  # tokenizers raises bare Exception, and panics of Rust, which are BaseException
        if isinstance(fault, OSError) and fault.errno not in (None, errno.EINVAL):  # EINVAL: a seek to a damaged offset
            raise
        reason = " ".join(str(fault).split())
        if isinstance(fault, MemoryError) or any(word in reason.lower() for word in _NO_MEMORY):
            raise MemoryPlanError(f"{message}: it takes more memory than there is ({reason[:200]})") from None
        raise error(f"{message}: {reason.partition('. ')[0][:300] or type(fault).__name__}{advice}") from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def cache_folder() -> Path:
    """Give the platform's cache folder: $XDG_CACHE_HOME/hanmo, by default ~/.cache/hanmo."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hanmo"
