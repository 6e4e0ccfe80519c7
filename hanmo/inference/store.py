"""The folder of built files: its path, the names of built files, and their checksums.

    NAME.safetensors   weights; NAME is a digest of what they were built from: the checkpoint's files and the options
    NAME.json          their checksum, and the status of the file when it was last verified

Files are written under another name and renamed when complete. Of their content only the header is known here.
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
    """One file of the folder; finished is False for the rest of an interrupted build, which is never read.

    words: from the file's metadata: "source", the checkpoint; "weights", their kind.
    """

    path: Path
    nbytes: int
    finished: bool
    words: Mapping[str, str]


def default_folder() -> Path:
    """Give the platform's cache folder: $XDG_CACHE_HOME/hanmo, by default ~/.cache/hanmo."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hanmo"


def built_path(folder: Path, checkpoint: Path | Location, options: Mapping[str, str | None]) -> Path:
    """Give the path of what is built from a checkpoint with these options, whether it exists or not.

    A checkpoint that changes, or moves, gets another path: see `identity`. The files' change times count too, as
    programs may set back the time of modification. Raises what `locate` raises.
    """
    found = locate(checkpoint)
    changed = [path.stat().st_ctime_ns for path in found.files]
    return folder / f"{_digest([identity(found), changed, sorted(options.items())])[:32]}{SUFFIX}"


def identity(checkpoint: Path | Location) -> str:
    """Digest a checkpoint's files, by path, size, time of modification and samples, and its configuration.

    Samples are 17 blocks of 4 KiB; indexes, which hold checksums, and configurations are read completely.
    Raises what `locate` raises.
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
    """Record the checksum and status of a file that was just built."""
    _note(path, _checksum(path))


def is_whole(path: Path) -> bool:
    """Tell whether a built file exists, unchanged.

    Its checksum is computed if it was written to or moved since the last time, and once after each boot of the
    machine; otherwise its status is compared.
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
    with suppress(OSError):  # the folder may be read-only
        _note(path, noted["crc32c"])
    return True


def entries(folder: Path) -> list[Built]:
    """List the folder's built files, finished or not, by name."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        finished = path.name.endswith(SUFFIX)
        if path.is_file() and (finished or (path.name.startswith(".") and path.name.endswith(".partial"))):
            found.append(Built(path, path.stat().st_size, finished, _words(path) if finished else {}))
    return found


def clear(folder: Path) -> int:
    """Delete the folder's built files and return their number of bytes; other files stay.

    A model in use is not disturbed: its file is deleted when it is closed.
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
    except CheckpointError:  # a foreign file, listed because it takes room
        return {}
    return {name: words[name] for name in ("source", "weights") if name in words}


def _sample(path: Path, size: int) -> str:
    """Digest 17 blocks of a file, the first and the last included; all of an index."""
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
