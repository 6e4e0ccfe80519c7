"""Which stacks have a fused decode step, whether its kernel runs on this machine, and with how many threads.

Importing a module of kernels compiles them, so this is asked before.
"""

import platform
import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from hanmo.config import StackConfig
from hanmo.cores import cores

__all__ = ["ACTIVATIONS", "NORMS", "SUPPORTED", "has_fused_step", "kernels", "most_threads"]

ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu")
"""Those of the CPU kernels, by their numbers in `functions.activate`."""

NORMS = ("attention_pre", "attention_post", "feed_forward_pre", "feed_forward_post")
MOST_THREADS = 16  # more do not read memory faster


SUPPORTED: dict[str, dict[str, tuple[object, ...]]] = {
    "float32": {"activation": ACTIVATIONS},
    "quantized": {
        "activation": ACTIVATIONS,
        "has_cross": (False,),
        "gated": (False,),
        "mask": ("causal",),
        "position": ("learned",),
        "hierarchical": (0.0,),
        "position_offset": (0,),
        "segments": (0,),
        "norm": ("layer",),
        "norm_scale": (True,),
    },
    "cuda": {"has_cross": (False,), "gated": (False,), "position": ("none", "learned", "sinusoidal")},
}
"""Of each kernel: the values of a stack's fields that it computes, where it does not compute all of them."""


def has_fused_step(stack: StackConfig, kernel: str) -> bool:
    """Tell whether a stack's blocks have a fused decode step of this kernel: "cuda", "float32" or "quantized".

    None adds scores of earlier blocks or has conditional norms. The quantized one needs sizes in groups of 128.
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
        [sublayer.kind for sublayer in stack.order] == ["attention", "feed_forward"]
        and stack.head_dim == stack.key_dim
        and stack.num_heads * stack.head_dim == stack.hidden_size == stack.embedding_size
        and stack.hidden_size % 128 == stack.feed_forward % 128 == 0
    )


@cache
def kernels(name: str) -> ModuleType | None:
    """Import and so compile the "float32" or "quantized" kernel; None where it cannot run or Numba is missing."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform not in ("linux", "darwin"):
        return None
    try:
        if name == "quantized" and not _has_vnni():
            return None
        return import_module(f"hanmo.inference.fused.{name}_kernel")
    except (ImportError, RuntimeError):  # RuntimeError: Numba has no folder to cache what it compiles
        return None


def most_threads() -> int:
    """Give the number of threads that saturates the memory: one for each core, at most 16."""
    return min(cores(), MOST_THREADS)


def _has_vnni() -> bool:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return all(features.get(name) for name in ("avx512f", "avx512bw", "avx512vnni"))
