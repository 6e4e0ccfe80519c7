"""The machine and the process: processor, versions, memory, and how fast memory is read. Knows no model."""

import datetime
import importlib.metadata
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hanmo.cores import cores

METHOD = "each thread takes the maximum of its part of an array of uint64; on a GPU, torch sums float32; median pass"


class MemoryReader:
    """A large array that is read from end to end, by CPU threads or a GPU, to measure the memory's bandwidth.

    least: bytes of the array; 8 times the largest cache if that is more, so that no cache holds it.
    """

    def __init__(self, *, device: str = "cpu", threads: int = 1, least: int = 1 << 30) -> None:
        self.nbytes = nbytes = max(least, 8 * _largest_cache())
        self._threads = threads
        self._tensor: Any = None
        if device.startswith("cpu"):
            with ThreadPoolExecutor(threads) as pool:  # a thread's first write places pages in its NUMA node
                self._parts = list(pool.map(lambda _: np.full(nbytes // 8 // threads, 7, np.uint64), range(threads)))
        else:
            import torch

            self._tensor = torch.ones(nbytes // 4, device=device)
        self.read()

    def read(self) -> float:
        """Read it once, on a GPU 16 times, and return bytes per second."""
        if self._tensor is not None:
            start = time.perf_counter()
            sums = [self._tensor.sum() for _ in range(16)]
            float(sums[-1])  # synchronises
            return 16 * self.nbytes / (time.perf_counter() - start)
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(len, self._parts))  # starts the threads
            start = time.perf_counter()
            list(pool.map(np.max, self._parts))
            return self.nbytes / (time.perf_counter() - start)


def describe(device: str = "cpu") -> dict[str, Any]:
    """Describe this machine and its software; "gpu" is None for a CPU."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("hanmo", "numpy", "openvino", "torch"):
        versions[name] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    gpu = None if device.startswith("cpu") else device
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name(device)
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_bytes": _kibibytes("/proc/meminfo", "MemTotal"),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def load() -> float | None:
    """Return the load average of the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def memory() -> dict[str, int | None]:
    """Return this process's memory in bytes; None outside Linux.

    anonymous: its own (RssAnon).   resident: with mapped files (VmRSS).   peak: the largest resident size (VmHWM).
    """
    names = {"anonymous": "RssAnon", "resident": "VmRSS", "peak": "VmHWM"}
    return {ours: _kibibytes("/proc/self/status", theirs) for ours, theirs in names.items()}


def _line(path: str, name: str) -> str | None:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith(name)), None)
    return None


def _kibibytes(path: str, name: str) -> int | None:
    found = _line(path, name)
    return None if found is None else int(found.split()[0]) * 1024


def _largest_cache() -> int:
    """Return the bytes of the processor's largest cache; 0 if unknown."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size.rstrip("KM")) * units.get(size[-1], 1) for size in sizes), default=0)
