"""The folder of built files: where it is, what a built file is called, what lies there.

A file's name is a digest of all that it was made of: the checkpoint's files by path, size and time, and the options.
Nothing half built bears such a name: files are written beside and renamed. Knows of what is in them only the header.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hanmo.errors import CheckpointError, MissingFile
from hanmo.weights.safetensors import Safetensors

__all__ = ["Built", "built_path", "clear", "default_folder", "entries"]

SUFFIX = ".safetensors"
_OF_CHECKPOINTS = (".index", ".safetensors", ".bin", ".pt", ".pth", "config.json", "hanmo.json", ".index.json")


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


def built_path(folder: Path, checkpoint: Path, options: Mapping[str, str | None]) -> Path:
    """Give the path of what is built from a checkpoint with these options, whether it is there or not.

    A checkpoint that changes, or moves, gets another path. Raises MissingFile if there is no file of a checkpoint.
    """
    digest = hashlib.sha256(json.dumps([_identity(checkpoint), sorted(options.items())]).encode())
    return folder / f"{digest.hexdigest()[:32]}{SUFFIX}"


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
        freed += built.nbytes
    return freed


def _words(path: Path) -> dict[str, str]:
    try:
        words = Safetensors(path).metadata
    except CheckpointError:  # a stranger's file; it is listed all the same, for it takes room
        return {}
    return {name: words[name] for name in ("source", "weights") if name in words}


def _identity(checkpoint: Path) -> list[list[str | int]]:
    """List the files that a checkpoint may be made of, without opening any but an index."""
    whole = checkpoint.resolve()
    folder = whole if whole.is_dir() else whole.parent
    if not folder.is_dir():
        raise MissingFile(f"no checkpoint at {checkpoint}: the folder {folder} is not there")
    stem = whole.name.partition(".index")[0].partition(".data-")[0]
    sharded = whole.is_dir() or whole.name.endswith(".json")
    found: list[list[str | int]] = []
    for path in sorted(folder.iterdir()):
        mine = path.name.startswith(stem) or path.name.endswith(("config.json", "hanmo.json")) or sharded
        if mine and path.is_file() and (path.name.endswith(_OF_CHECKPOINTS) or ".data-" in path.name):
            status = path.stat()
            found.append([str(path), status.st_size, status.st_mtime_ns])
            if path.suffix == ".index":
                found[-1].append(hashlib.sha256(path.read_bytes()).hexdigest())
    if all(str(name).endswith(".json") for name, *_ in found):
        raise MissingFile(f"no checkpoint at {checkpoint}; give a TensorFlow prefix, a file, or a folder with one")
    return found
