"""Compiled kernels: in which folder each is kept for which processor, and what is there.

    PLACE/KEY/*.nbi, *.nbc   Numba's files; KEY is a digest of the kernel's sources, versions and the processor
    PLACE/KEY/about.json     the kernel, the processor, the seconds it took, and the files' checksums

The first place is __pycache__ of this package, so that what was compiled while an image was built serves all its users.
Where it cannot be written to, it is the cache folder; where that cannot either, nothing is kept.
"""

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from hanmo.checkpoint.staged import partial_folder
from hanmo.errors import HanmoError
from hanmo.files import cache_folder, read_json

__all__ = ["Compiled", "clear", "entries", "load", "places", "target"]

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
        found.append(cache_folder())
    return [place / NAME for place in found]


def load(module: str, processor: str | None = None) -> ModuleType:
    """Import a module of kernels, which reads what was compiled for this processor, or compiles it and keeps that.

    module: whose name ends in _kernel.   processor: what is compiled for, if not only Numba's target.
    Raises ImportError without Numba.
    """
    cpu, features = target()
    name, processor = module.rpartition(".")[2].removesuffix("_kernel"), processor or cpu
    digest = hashlib.sha256("\n".join([name, processor, features, *_versions()]).encode())
    for source in _sources(module):
        digest.update(source)
    key = digest.hexdigest()[:32]
    with _LOCK:
        for place in places():
            if _is_whole(place / key):
                return _import(module, place / key)
        for place in places():
            with suppress(OSError), partial_folder(place / key) as made:
                _LOG.info("compiling kernels for this processor (10 to 30 s, once)")
                begun = time.perf_counter()
                loaded = _import(module, made)
                about = {"kernel": name, "processor": processor, "seconds": round(time.perf_counter() - begun, 1)}
                with suppress(OSError):  # the disk is full, or another process was faster
                    (made / ABOUT).write_text(json.dumps({**about, "files": _checksums(made)}) + "\n", "utf-8")
                    shutil.rmtree(place / key, ignore_errors=True)  # damaged
                    made.rename(place / key)
                return loaded
        _LOG.warning(
            f"compiling kernels, which takes 10 to 30 s in every process: neither {places()[0].parent} nor "
            f"{places()[-1].parent} can be written to; set XDG_CACHE_HOME to a folder that can"
        )
        return _import(module, None)


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


def target() -> tuple[str, str]:
    """Give the processor that Numba compiles for, which its own settings may change, and features as "+a,-b".

    Raises ImportError without Numba.
    """
    codegen: Any = import_module("numba.core.codegen")  # which has no types
    cpu, features = codegen.config.CPU_NAME, codegen.config.CPU_FEATURES
    return (
        codegen.ll.get_host_cpu_name() if cpu is None else cpu,
        codegen.get_host_cpu_features() if features is None else features,
    )


def _import(module: str, folder: Path | None) -> ModuleType:
    """Import a module while Numba looks for compiled code in a folder."""
    from hanmo.kernels.locator import Locator

    config: Any = import_module("numba.core.config")  # which has no types
    before = config.CACHE_LOCATOR_CLASSES
    config.CACHE_LOCATOR_CLASSES = f"{Locator.__module__}.{Locator.__qualname__}"
    Locator.folder = None if folder is None else str(folder)
    try:
        return import_module(module)
    finally:
        config.CACHE_LOCATOR_CLASSES = before


def _sources(module: str) -> list[bytes]:
    """Read the module and those beside it, without other kernels."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    own = Path(spec.origin)
    paths = [path for path in own.parent.glob("*.py") if path == own or not path.stem.endswith("_kernel")]
    return [path.read_bytes() for path in sorted(paths)]


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
