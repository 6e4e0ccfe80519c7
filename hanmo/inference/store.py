"""The folder of built files: its path, the names of built files, and their checksums.

    NAME.safetensors   weights; NAME is a digest of what they were built from: the checkpoint's files and the options
    NAME.json          their checksum, and the status of the file when it was last verified

Files are written under another name and renamed when complete. Of their content only the header is known here.
"""

import hashlib
import json
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

__all__ = ["Built", "built_path", "clear", "entries", "identity", "is_whole", "seal"]

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
    rows: list[list[str | int]] = []
    for path in found.files:
        status = path.stat()
        if path.name.endswith((".index", ".json")):
            sample = _digest(path.read_bytes().hex())
        else:
            blocks = []
            with path.open("rb") as file:
                for number in range(17):
                    file.seek(max(0, status.st_size - _BLOCK) * number // 16)
                    blocks.append(file.read(_BLOCK).hex())
            sample = _digest(blocks)
        rows.append([str(found.folder.resolve() / path.name), status.st_size, status.st_mtime_ns, sample])
    configs = [config for config in (found.config, found.own_config) if config is not None]
    return _digest(rows + [[config.name, _digest(config.read_bytes().hex())] for config in configs])


def seal(path: Path, checksum: int | None = None) -> None:
    """Record the checksum and status of a file that was just built, or whose checksum was just computed."""
    noted = {"crc32c": _checksum(path) if checksum is None else checksum, "status": _status(path)}
    with atomic_path(path.with_suffix(".json")) as made:
        made.write_text(json.dumps(noted) + "\n", "utf-8")


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
        seal(path, noted["crc32c"])
    return True


def entries(folder: Path) -> list[Built]:
    """List the folder's built files, finished or not, by name."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        finished = path.name.endswith(SUFFIX)
        if path.is_file() and (finished or (path.name.startswith(".") and path.name.endswith(".partial"))):
            words: Mapping[str, str] = {}
            with suppress(CheckpointError):  # a foreign file is listed too, because it takes room
                words = Safetensors(path).metadata if finished else {}
            words = {name: words[name] for name in ("source", "weights") if name in words}
            found.append(Built(path, path.stat().st_size, finished, words))
    return found


def clear(folder: Path) -> int:
    """Delete the folder's built files and return their number of bytes; other files stay.

    A model in use is not disturbed: its file is deleted when it is closed.
    """
    built = entries(folder)
    for each in built:
        each.path.unlink(missing_ok=True)
        each.path.with_suffix(".json").unlink(missing_ok=True)
    return sum(each.nbytes for each in built)


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            total = crc32c(chunk, total)
    return total


def _status(path: Path) -> list[str | int]:
    status, boot = path.stat(), ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, boot]
