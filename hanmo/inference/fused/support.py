"""Which stacks have a fused decode step, which instructions its kernel uses on this machine, and how many threads.

Importing a module of kernels compiles them, so this is asked before.
"""

import ctypes
import os
import platform
import sys
from functools import cache
from types import ModuleType

from hanmo.config import StackConfig
from hanmo.cores import cores
from hanmo.errors import ConfigError
from hanmo.inference.fused.packing import LANES, group_size
from hanmo.kernels.cache import load, target

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "SUPPORTED",
    "allow_tiles",
    "has_fused_step",
    "instructions",
    "is_large",
    "kernels",
    "most_threads",
    "processor",
]

KERNELS = ("float32", "quantized")
"""The kernels of CPUs; each is a module that ends in _kernel."""

INSTRUCTIONS = {
    "avx2": ("avx2", "fma"),
    "avx512": ("avx512f", "avx512bw"),
    "vnni": ("avx512vnni",),
    "amx": ("amx-tile", "amx-int8"),
}
"""The sets of instructions for quantized products, and what each needs besides the one before. Results are the same."""

ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu")
"""Those of the CPU kernels, by their numbers in `functions.activate`."""

LEAST_BYTES = 64 << 20
"""OpenVINO reads smaller quantized weights fast enough; it starts half a second sooner and compiles nothing."""

MOST_THREADS = 16  # more do not read memory faster


SUPPORTED: dict[str, dict[str, tuple[object, ...]]] = {
    "float32": {"activation": ACTIVATIONS},
    "quantized": {
        "activation": ACTIVATIONS,
        "shared_segments": (False,),
        "cross_positions": (False,),
    },
    "cuda": {"has_cross": (False,), "gated": (False,), "position": ("none", "learned", "sinusoidal")},
}
"""Of each kernel: the values of a stack's fields that it computes, where it does not compute all of them."""


def has_fused_step(stack: StackConfig, kernel: str) -> bool:
    """Tell whether a stack's blocks have a fused decode step of this kernel: "cuda", "float32" or "quantized".

    None adds scores of earlier blocks or has conditional norms. The quantized one needs sizes in groups of 128 or 32,
    and heads in blocks of 16.
    """
    if stack.score_residual != "none" or stack.condition:
        return False
    if any(getattr(stack, field) not in values for field, values in SUPPORTED[kernel].items()):
        return False
    if kernel == "float32":
        return True
    if kernel == "cuda":
        return stack.key_dim == stack.head_dim
    return (
        stack.head_dim == stack.key_dim
        and stack.num_heads * stack.head_dim == stack.hidden_size == stack.embedding_size
        and all(group_size(inputs) for inputs in (stack.hidden_size, stack.feed_forward))
        and stack.head_dim % LANES == 0
    )


def is_large(size: int) -> bool:
    """Tell whether quantized weights of so many bytes are worth a fused step."""
    return size >= LEAST_BYTES


@cache
def kernels(name: str) -> ModuleType | None:
    """Import the "float32" or "quantized" kernel, compiled; None where it cannot run or Numba is missing.

    Raises what `instructions` raises.
    """
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform not in ("linux", "darwin"):
        return None
    try:
        if name == "quantized" and instructions() is None:
            return None
        return load(f"hanmo.inference.fused.{name}_kernel", processor())
    except ImportError:
        return None


def instructions() -> str | None:
    """Give the last of INSTRUCTIONS that this machine has, or the one before it that HANMO_CPU asks for, if any.

    Raises ConfigError if HANMO_CPU is none of these, ImportError without Numba.
    """
    present = {each[1:] for each in target()[1].split(",") if each.startswith("+")}
    found: list[str] = []
    for name, needed in INSTRUCTIONS.items():
        if not present.issuperset(needed):
            break
        found.append(name)
    asked = os.environ.get("HANMO_CPU", "")
    if asked and asked not in found:
        raise ConfigError(f"HANMO_CPU is {asked!r}; this machine has {', '.join(found) or 'none of its values'}")
    return asked or (found[-1] if found else None)


@cache
def allow_tiles() -> bool:
    """Ask the system to allow AMX tiles in this process: False where they are missing, refused or not wanted."""
    if sys.platform != "linux" or instructions() != "amx":
        return False
    request, permission, data = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return ctypes.CDLL(None).syscall(request, permission, data) == 0


def processor() -> str:
    """Name the processor that is compiled for, and the chosen instructions. Raises what `instructions` raises."""
    return f"{target()[0]} ({instructions() or 'no AVX2'})"


def most_threads() -> int:
    """Give the number of threads that saturates the memory: one for each core, at most 16."""
    return min(cores(), MOST_THREADS)
