"""Whether the compiled steps suit a network, this Python and this processor, and how many threads should run them.

Importing a module of kernels compiles them, so this is asked before.
"""

import platform
import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from hanmo.config import StackConfig
from hanmo.cores import cores

__all__ = ["ACTIVATIONS", "NORMS", "kernels", "most_threads", "plain"]

ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu")
"""By the numbers that `functions.activate` knows them by."""

NORMS = ("attention_pre", "attention_post", "feed_forward_pre", "feed_forward_post")
MOST_THREADS = 16  # more do not read the memory faster


def plain(stack: StackConfig) -> bool:
    """Say whether a stack is no more than attention and feed-forward with layer norms, positions already added."""
    return (
        [sublayer.kind for sublayer in stack.order] == ["attention", "feed_forward"]
        and stack.position in ("learned", "sinusoidal")
        and stack.norm == "layer"
        and stack.norm_scale
        and stack.activation in ACTIVATIONS
        and stack.score_residual == "none"
        and not (stack.gated or stack.condition)
    )


@cache
def kernels(name: str) -> ModuleType | None:
    """Import "float32" or "quantized" and so compile it, or give None where it does not run or Numba is not there."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform not in ("linux", "darwin"):
        return None
    try:
        if name == "quantized" and not _multiplies_bytes():
            return None
        return import_module(f"hanmo.inference.fused.{name}_step")
    except (ImportError, RuntimeError):  # RuntimeError: nowhere may Numba keep what it compiles
        return None


def most_threads() -> int:
    """Give how many threads read the memory as fast as it goes: one for each core, at most 16."""
    return min(cores(), MOST_THREADS)


def _multiplies_bytes() -> bool:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return all(features.get(name) for name in ("avx512f", "avx512bw", "avx512vnni"))
