"""Compiled kernels: in which folder each is kept for which processor, and what is there.

    PLACE/KEY/step….nbi, .nbc   Numba's files; KEY is a digest of the kernel's sources, versions and the processor
    PLACE/KEY/about.json        the kernel, the processor, the seconds it took, and the files' checksums

The first place is __pycache__ of this package, so that what was compiled while an image was built serves all its users.
Where it cannot be written to, it is the folder of built files; where that cannot either, nothing is kept.
"""

import hashlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from hanmo.checkpoint.staged import partial_folder
from hanmo.errors import HanmoError
from hanmo.files import read_json
from hanmo.inference.store import default_folder

__all__ = ["Compiled", "clear", "entries", "load", "places"]

NAME, ABOUT = "compiled", "about.json"
_LOCK = Lock()
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """A kernel that is kept.   seconds: what compiling it took."""

    path: Path
    nbytes: int
    kernel: str
    processor: str
    seconds: float


def places() -> list[Path]:
    """Give the folders of compiled kernels, the first choice first."""
    found = [Path(__file__).with_name("__pycache__")]
    with suppress(RuntimeError):  # there is no home directory
        found.append(default_folder())
    return [place / NAME for place in found]


def load(name: str, processor: str, features: str) -> ModuleType:
    """Import a kernel's module, which reads what was compiled for this processor, or compiles it and keeps that.

    processor, features: what is compiled for; Numba has its own settings for them.
    """
    digest = hashlib.sha256("\n".join([name, processor, features, *_versions()]).encode())
    for source in _sources(name):
        digest.update(source)
    key = digest.hexdigest()[:32]
    with _LOCK:
        for place in places():
            if _is_whole(place / key):
                return _import(name, place / key)
        for place in places():
            with suppress(OSError), partial_folder(place / key) as made:
                _LOG.info("compiling the fused step for this processor (about 10 s, once)")
                begun = time.perf_counter()
                module = _import(name, made)
                about = {"kernel": name, "processor": processor, "seconds": round(time.perf_counter() - begun, 1)}
                with suppress(OSError):  # the disk is full, or another process was faster
                    (made / ABOUT).write_text(json.dumps({**about, "files": _checksums(made)}) + "\n", "utf-8")
                    shutil.rmtree(place / key, ignore_errors=True)  # damaged
                    made.rename(place / key)
                return module
        _LOG.warning(
            f"compiling the fused step, which takes about 10 s in every process: neither {places()[0].parent} nor "
            f"{places()[-1].parent} can be written to; set XDG_CACHE_HOME to a folder that can"
        )
        return _import(name, None)


def entries(folder: Path | None = None) -> list[Compiled]:
    """List the compiled kernels of all places, or of one folder of built files."""
    found = []
    for path in _kept(folder):
        with suppress(HanmoError, KeyError, OSError):  # being made or deleted
            about: dict[str, Any] = read_json(path / ABOUT)
            found.append(Compiled(path, _size(path), *(about[name] for name in ("kernel", "processor", "seconds"))))
    return found


def clear(folder: Path | None = None) -> int:
    """Delete the compiled kernels of all places, or of one folder of built files, and return the number of bytes.

    What cannot be written to stays. A process that uses a kernel is not disturbed.
    """
    before = [(path, _size(path)) for path in _kept(folder)]
    for path, _ in before:
        shutil.rmtree(path, ignore_errors=True)
    return sum(size for path, size in before if not path.exists())


def _import(name: str, folder: Path | None) -> ModuleType:
    """Import a kernel's module while Numba looks for compiled code in a folder."""
    from hanmo.inference.fused.functions import Locator

    config: Any = import_module("numba.core.config")  # which has no types
    before = config.CACHE_LOCATOR_CLASSES
    config.CACHE_LOCATOR_CLASSES = f"{Locator.__module__}.{Locator.__qualname__}"
    Locator.folder = None if folder is None else str(folder)
    try:
        return import_module(f"hanmo.inference.fused.{name}_kernel")
    finally:
        config.CACHE_LOCATOR_CLASSES = before


def _sources(name: str) -> list[bytes]:
    """Read the modules here that are compiled, without those of other kernels."""
    own = f"{name}_kernel"
    paths = [
        path for path in Path(__file__).parent.glob("*.py") if path.stem == own or not path.stem.endswith("_kernel")
    ]
    read = [path.read_bytes() for path in sorted(paths)]
    return [source for source in read if re.search(rb"^(from|import) (numba|llvmlite)", source, re.MULTILINE)]


def _versions() -> list[str]:
    import llvmlite
    import numba

    return [numba.__version__, llvmlite.__version__, str(sys.implementation.cache_tag)]


def _is_whole(folder: Path) -> bool:
    try:
        checksums: Mapping[str, str] = read_json(folder / ABOUT)["files"]
    except (HanmoError, KeyError, OSError):
        return False
    return checksums == _checksums(folder)


def _checksums(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.name != ABOUT]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _kept(folder: Path | None) -> Iterator[Path]:
    for place in places() if folder is None else [folder / NAME]:
        yield from sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else ()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
