"""All blocks of a stack at once for one token of one row, in float32 on a CPU: at the speed of the memory.

Knows which stacks and calls it supports, and the addresses of their parameters; float32_step.py computes.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hanmo.config import StackConfig
from hanmo.inference.fused.support import ACTIVATIONS, NORMS, kernels, most_threads, plain
from hanmo.inference.fused.thread_pool import run_step
from hanmo.nn.attention import AttentionInputs
from hanmo.nn.cache import Cache
from hanmo.nn.linear import Linear
from hanmo.nn.norm import Norm
from hanmo.nn.stack import Stack

__all__ = ["fused_step"]

LEAST = 16 << 20
"""Numbers in a stack's matrices below which they stay in the processor's cache, where torch is fast enough."""


def fused_step(stack: Stack, x: Tensor, inputs: AttentionInputs, cache: Cache) -> Tensor | None:
    """Run x [1, 1, hidden_size] through all blocks and append its keys and values to the cache: the same shape.

    None where this does not suit: more tokens, another dtype or device, gradients, hooks, a small or another stack.
    """
    if (
        x.shape[:2] != (1, 1)
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or (stack.training and (stack.config.dropout or stack.config.attention_dropout))
        or not (plain(stack.config) and _numbers(stack.config) >= LEAST)
        or (inputs.mask is not None and not bool(inputs.mask.all()))
        or not 0 < cache.length < cache.capacity
        or cache.keys[0].dtype != torch.float32
        or not (cache.rows == 1 and cache.keys[0].is_contiguous())
        or any(module._forward_hooks or module._forward_pre_hooks for module in stack.blocks.modules())
    ):
        return None
    lie = tuple([(parameter.data_ptr(), parameter.stride()) for parameter in stack.blocks.parameters()])
    found = _STEPS.get(stack)
    if found is None or found[0] != lie:
        found = _STEPS[stack] = lie, _fields(stack) if kernels("float32") is not None else None
    return None if found[1] is None else _run(stack.config, found[1], x, cache)


_STEPS: WeakKeyDictionary[Stack, tuple[tuple[Any, ...], list[list[int]] | None]] = WeakKeyDictionary()
"""Of each stack: where its parameters lay when it was looked at, and the fields of its layers, or None."""


def _numbers(stack: StackConfig) -> int:
    of_a_block = 2 * stack.hidden_size * (stack.num_heads * (stack.key_dim + stack.head_dim) + stack.feed_forward)
    return of_a_block * (1 if stack.shared_layers else stack.num_layers)


def _run(stack: StackConfig, fields: Sequence[list[int]], x: Tensor, cache: Cache) -> Tensor:
    from hanmo.inference.fused.float32_step import step

    threads = min(torch.get_num_threads(), most_threads())
    kept = zip(cache.keys, cache.values, strict=True)
    lie = [(keys.data_ptr(), values.data_ptr()) for keys, values in kept]
    layers = np.array([[*fields[layer % len(fields)], *lie[layer]] for layer in range(stack.num_layers)], np.int64)
    hidden = torch.empty(stack.hidden_size, dtype=torch.float32, device="cpu")
    narrow, values = stack.num_heads * stack.key_dim, stack.num_heads * stack.head_dim
    shared = np.empty(values + threads * (2 * narrow + values + 2 * stack.hidden_size + stack.feed_forward), np.float32)
    sizes = stack.num_heads, stack.key_dim, stack.head_dim, stack.feed_forward, ACTIVATIONS.index(stack.activation)
    how = (x.reshape(-1).numpy(), layers, sizes, np.float32(stack.scale), np.float32(stack.norm_eps))
    where = cache.capacity, cache.length, shared, hidden.numpy()
    run_step(step, threads, *how, *where)
    return hidden.view(1, 1, -1)


def _fields(stack: Stack) -> list[list[int]] | None:
    """Say where everything lies, block by block; None where a layer is of another kind, or lies in another way."""
    found = []
    for each in stack.blocks:
        block: Any = each
        attention, inner = block.attention, block.feed_forward
        layers = (attention.query, attention.key, attention.value, attention.output, inner.input, inner.output)
        fields = []
        for layer in layers:
            matrix = _matrix(layer)
            if matrix is None:
                return None
            fields += matrix
        for name in NORMS:
            norm: Any = getattr(block, name, None)
            if norm is not None and type(norm) is not Norm:
                return None
            fields += [0, 0] if norm is None else [_address(norm.weight), _address(norm.bias)]
        found.append(fields)
    return found


def _matrix(layer: nn.Module) -> list[int] | None:
    if type(layer) is not Linear or type(layer.weight) is not nn.Parameter or layer.weight.dtype != torch.float32:
        return None
    down, across = layer.weight.stride()
    if 1 not in (down, across):
        return None
    return [layer.weight.data_ptr(), *((across, 1) if down == 1 else (down, 0)), _address(layer.bias)]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
