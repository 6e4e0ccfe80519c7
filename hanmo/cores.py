"""How many cores, how much memory and which fast arithmetic this process may use, and how many threads torch takes.

Knows the system alone.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def cores() -> int:
    """Count the cores that this process may use, by its affinity and the quotas of its cgroups; at least 1.

    Threads that share a core count once; of a quota the whole cores count.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    found = set()
    for number in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        found.add(siblings.read_text() if siblings.is_file() else str(number))
    return max(1, min([len(found), *_quotas(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))]))


@cache
def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies matrices faster in bfloat16 than in float32: with AVX-512 BF16 or AMX."""
    try:
        from llvmlite import binding
    except ImportError:  # Hanmo needs it on x86 only
        return False
    features = binding.get_host_cpu_features()
    return bool(features.get("avx512bf16") or features.get("amx-bf16"))


SHORT_ATTENTION = 256
"""Up to so many tokens, torch's attention trains faster on a CPU in float32 than in bfloat16: 36 ms against 134 for
64 x 6 x 128 x 32, both ways; longer ones do not (2 threads of an Intel Xeon with AMX, torch 2.13)."""


def set_torch_threads(threads: int | None) -> None:
    """Have torch compute with so many threads; None is one for each core, unless OMP_NUM_THREADS says how many."""
    import torch

    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or cores())


def available_memory() -> int:
    """Return the bytes still free for this process in the machine and its control group."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [sys.maxsize]
    if available := proc_bytes("/proc/meminfo", "MemAvailable"):
        found.append(available)
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(max(0, int(text) - int(used.read_text())))
    return min(found)


def proc_bytes(path: str, name: str) -> int:
    """Return a size that a file of /proc gives in KiB, in bytes; 0 where there is none."""
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0


def _quotas(root: Path, own: Path) -> Iterator[int]:
    """Give the whole cores that this process's cgroups and those above them allow.

    root: where cgroups are mounted, version 1 by controller.   own: lines of "number:controllers:path", the controllers
    of version 2 being empty. In a container the path may be the host's, which is not there, and root the container's.
    """
    lines = own.read_text().splitlines() if own.is_file() else []
    for line in [*lines, "0::/", "0:cpu:/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        for folder in [base / path.lstrip("/"), *(base / path.lstrip("/")).parents]:
            if not folder.is_relative_to(base):
                break
            if controllers:  # -1 of 100000 is no limit
                files = [folder / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
                numbers = [file.read_text() for file in files if file.is_file()]
            else:  # "200000 100000", or "max 100000"
                numbers = (folder / "cpu.max").read_text().split() if (folder / "cpu.max").is_file() else []
            if len(numbers) == 2 and numbers[0] != "max" and int(numbers[0]) > 0:
                yield int(numbers[0]) // int(numbers[1])
