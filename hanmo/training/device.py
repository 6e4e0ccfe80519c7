"""How much memory a device has free, and how much of it this process takes.

Knows devices; knows no model.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["free_memory", "held_memory", "peak_memory", "reset_peak"]


def free_memory(device: torch.device) -> int:
    """Give the bytes that this process may still take: of the GPU, or of the machine and the group it is bound to."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [sys.maxsize]
    facts = Path("/proc/meminfo")
    if facts.is_file():
        found += [int(line.split()[1]) << 10 for line in facts.read_text().splitlines() if "MemAvailable" in line]
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(max(0, int(text) - int(used.read_text())))
    return min(found)


def held_memory(device: torch.device) -> int:
    """Give the bytes that this process holds now: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS") or peak_memory(device)


def peak_memory(device: torch.device) -> int:
    """Give the most bytes that this process has held since `reset_peak`, or its start."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if found := _status("VmHWM"):
        return found
    try:
        import resource
    except ImportError:  # Windows counts it elsewhere; the plan stands alone there
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reset_peak(device: torch.device) -> None:
    """Count the peak from here on; on a CPU only where Linux allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def _status(name: str) -> int:
    """Read a size of /proc/self/status in bytes; 0 where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0
