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

__all__ = ["ACTIVATIONS", "NORMS", "has_fused_step", "kernels", "most_threads"]

ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu")
"""Those of the CPU kernels, by their numbers in `functions.activate`."""

NORMS = ("attention_pre", "attention_post", "feed_forward_pre", "feed_forward_post")
MOST_THREADS = 16  # more do not read memory faster


def has_fused_step(stack: StackConfig, kernel: str) -> bool:
    """Tell whether a stack's blocks have a fused decode step of this kernel: "cuda", "float32" or "quantized".

    All need self-attention by scores alone, positions added to the embedding, and a feed-forward without a gate. The
    CPU's also need layer norms and a known activation, the quantized one causal GPTs with sizes in groups of 128.
    """
    if stack.score_residual != "none" or stack.gated or stack.condition or stack.has_cross:
        return False
    if kernel == "cuda":
        return stack.position in ("none", "learned", "sinusoidal") and stack.key_dim == stack.head_dim
    plain = (
        [sublayer.kind for sublayer in stack.order] == ["attention", "feed_forward"]
        and stack.position in ("learned", "sinusoidal")
        and (stack.norm == "layer" and stack.norm_scale and stack.activation in ACTIVATIONS)
    )
    if kernel == "float32":
        return plain
    return (
        plain
        and stack.mask == "causal"
        and stack.position == "learned"
        and not (stack.hierarchical or stack.position_offset or stack.segments)
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
