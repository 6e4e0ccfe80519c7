"""The folder of built files: where it is, what a built file is called, what lies there.

    NAME.safetensors   weights; NAME is a digest of all that they were made of: the checkpoint's files and the options
    NAME.json          their checksum, and the status of the file when it was last summed up

Nothing half built bears such a name: files are written beside and renamed. Knows of what is in them only the header.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

from hanmo.checkpoint.open import Location, locate
from hanmo.checkpoint.safetensors import Safetensors
from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import CheckpointError, HanmoError
from hanmo.files import read_json

__all__ = ["Built", "built_path", "clear", "default_folder", "entries", "identity", "is_whole", "seal"]

SUFFIX = ".safetensors"
_BLOCK = 4096


@dataclass(frozen=True)
class Built:
    """One file of the folder; finished is False for what an interrupted build left, which nothing ever reads.

    words: what the file says of itself: "source", the checkpoint; "weights", their kind.
    """

    path: Path
    nbytes: int
    finished: bool
    words: Mapping[str, str]


def default_folder() -> Path:
    """Give the platform's folder for files that can be made again: $XDG_CACHE_HOME/hanmo, by default ~/.cache/hanmo."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hanmo"


def built_path(folder: Path, checkpoint: Path | Location, options: Mapping[str, str | None]) -> Path:
    """Give the path of what is built from a checkpoint with these options, whether it is there or not.

    A checkpoint that changes, or moves, gets another path: see `identity`. A file's change time is looked at besides,
    for a program may set the time of modification back. Raises what `locate` raises.
    """
    found = locate(checkpoint)
    changed = [path.stat().st_ctime_ns for path in found.files]
    return folder / f"{_digest([identity(found), changed, sorted(options.items())])[:32]}{SUFFIX}"


def identity(checkpoint: Path | Location) -> str:
    """Digest what tells a checkpoint from others: its files by path, size, time and samples, and its configuration.

    Of each data file 17 blocks of 4 KiB are read, of an index, which holds checksums, and of a configuration
    everything. Raises what `locate` raises.
    """
    found = locate(checkpoint)
    folder = found.folder.resolve()
    rows: list[list[str | int]] = []
    for path in found.files:
        status = path.stat()
        rows.append([str(folder / path.name), status.st_size, status.st_mtime_ns, _sample(path, status.st_size)])
    for config in (found.config, found.own_config):
        if config is not None:
            rows.append([config.name, _digest(config.read_bytes().hex())])
    return _digest(rows)


def seal(path: Path) -> None:
    """Note the checksum of a file that was just built beside it, and that the file as it is now has it."""
    _note(path, _checksum(path))


def is_whole(path: Path) -> bool:
    """Tell whether a built file is there, as it was built.

    It is summed up when it was written to or moved since it was last summed up, and once after each start of the
    machine; otherwise its status is enough.
    """
    try:
        noted = read_json(path.with_suffix(".json"))
    except (HanmoError, OSError):
        return False
    if not path.is_file():
        return False
    if noted.get("status") == _status(path):
        return True
    if noted.get("crc32c") != _checksum(path):
        return False
    with suppress(OSError):  # a folder that cannot be written to
        _note(path, noted["crc32c"])
    return True


def entries(folder: Path) -> list[Built]:
    """List what was built into the folder, finished or not, by name."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        finished = path.name.endswith(SUFFIX)
        if path.is_file() and (finished or (path.name.startswith(".") and path.name.endswith(".partial"))):
            found.append(Built(path, path.stat().st_size, finished, _words(path) if finished else {}))
    return found


def clear(folder: Path) -> int:
    """Delete what was built into the folder and return how many bytes that were; other files stay.

    A model that is in use goes on: its file leaves the disk when it is closed.
    """
    freed = 0
    for built in entries(folder):
        built.path.unlink(missing_ok=True)
        built.path.with_suffix(".json").unlink(missing_ok=True)
        freed += built.nbytes
    return freed


def _words(path: Path) -> dict[str, str]:
    try:
        words = Safetensors(path).metadata
    except CheckpointError:  # a stranger's file; it is listed all the same, for it takes room
        return {}
    return {name: words[name] for name in ("source", "weights") if name in words}


def _sample(path: Path, size: int) -> str:
    """Digest 17 blocks of a file, from its first to its last; all of an index."""
    if path.name.endswith((".index", ".json")):
        return _digest(path.read_bytes().hex())
    with path.open("rb") as file:
        blocks = []
        for number in range(17):
            file.seek(max(0, size - _BLOCK) * number // 16)
            blocks.append(file.read(_BLOCK).hex())
    return _digest(blocks)


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            total = crc32c(chunk, total)
    return total


def _status(path: Path) -> list[str | int]:
    status = path.stat()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot = ""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, boot]


def _note(path: Path, checksum: int) -> None:
    with atomic_path(path.with_suffix(".json")) as made:
        made.write_text(json.dumps({"crc32c": checksum, "status": _status(path)}) + "\n", "utf-8")
