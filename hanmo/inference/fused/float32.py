"""The fused decode step in float32: one token of one row through all blocks of a torch stack on a CPU.

Knows which stacks and calls have it, and the addresses of their parameters; float32_kernel.py computes.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hanmo.config import StackConfig
from hanmo.inference.fused.support import ACTIVATIONS, NORMS, has_fused_step, kernels, most_threads
from hanmo.inference.fused.thread_pool import run_step
from hanmo.nn.attention import AttentionInputs
from hanmo.nn.cache import Cache
from hanmo.nn.linear import Linear
from hanmo.nn.norm import Norm
from hanmo.nn.stack import Stack

__all__ = ["fused_step"]

LEAST = 16 << 20
"""Parameters in a stack's matrices; smaller ones fit the processor's cache, where torch is fast enough."""

Layout = list[list[int]]


def fused_step(stack: Stack, x: Tensor, inputs: AttentionInputs, cache: Cache) -> Tensor | None:
    """Run x [1, 1, hidden_size] through all blocks and append its keys and values to the cache: the same shape.

    None for calls without a fused step: more tokens, other dtypes or devices, gradients, hooks, small or other stacks.
    """
    config = stack.config
    matrices = 2 * config.hidden_size * (config.num_heads * (config.key_dim + config.head_dim) + config.feed_forward)
    if (
        x.shape[:2] != (1, 1)
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or (stack.training and (config.dropout or config.attention_dropout))
        or not has_fused_step(config, "float32")
        or matrices * (1 if config.shared_layers else config.num_layers) < LEAST
        or (inputs.mask is not None and not bool(inputs.mask.all()))
        or not 0 < cache.length < cache.capacity
        or cache.keys[0].dtype != torch.float32
        or not (cache.rows == 1 and cache.keys[0].is_contiguous())
        or any(module._forward_hooks or module._forward_pre_hooks for module in stack.blocks.modules())
    ):
        return None
    addresses = tuple([(parameter.data_ptr(), parameter.stride()) for parameter in stack.blocks.parameters()])
    kept = _LAYOUTS.get(stack)
    if kept is None or kept[0] != addresses:
        kept = _LAYOUTS[stack] = addresses, _layout(stack) if kernels("float32") is not None else None
    return None if kept[1] is None else _run(config, kept[1], x, cache)


_LAYOUTS: WeakKeyDictionary[Stack, tuple[tuple[Any, ...], Layout | None]] = WeakKeyDictionary()
"""Of each stack: the addresses of its parameters when it was last looked at, and the layout of its blocks then."""


def _run(stack: StackConfig, layout: Layout, x: Tensor, cache: Cache) -> Tensor:
    from hanmo.inference.fused.float32_kernel import step

    threads = min(torch.get_num_threads(), most_threads())
    kept = [(keys.data_ptr(), values.data_ptr()) for keys, values in zip(cache.keys, cache.values, strict=True)]
    layers = np.array([[*layout[layer % len(layout)], *kept[layer]] for layer in range(stack.num_layers)], np.int64)
    hidden = torch.empty(stack.hidden_size, dtype=torch.float32, device="cpu")
    narrow, values = stack.num_heads * stack.key_dim, stack.num_heads * stack.head_dim
    shared = np.empty(values + threads * (2 * narrow + values + 2 * stack.hidden_size + stack.feed_forward), np.float32)
    sizes = stack.num_heads, stack.key_dim, stack.head_dim, stack.feed_forward, ACTIVATIONS.index(stack.activation)
    given = (x.reshape(-1).numpy(), layers, sizes, np.float32(stack.scale), np.float32(stack.norm_eps))
    run_step(step, threads, *given, cache.capacity, cache.length, shared, hidden.numpy())
    return hidden.view(1, 1, -1)


def _layout(stack: Stack) -> Layout | None:
    """Give addresses and strides of every block's parameters; None if a layer's class or layout is not supported."""
    blocks = []
    for each in stack.blocks:
        block: Any = each
        attention, inner = block.attention, block.feed_forward
        fields: list[int] = []
        for layer in (attention.query, attention.key, attention.value, attention.output, inner.input, inner.output):
            weight = getattr(layer, "weight", None)
            if type(layer) is not Linear or type(weight) is not nn.Parameter or weight.dtype != torch.float32:
                return None
            rows, columns = weight.stride()
            if 1 not in (rows, columns):
                return None
            fields += [weight.data_ptr(), *((columns, 1) if rows == 1 else (rows, 0)), _address(layer.bias)]
        for norm in [getattr(block, name, None) for name in NORMS]:
            if norm is not None and type(norm) is not Norm:
                return None
            fields += [0, 0] if norm is None else [_address(norm.weight), _address(norm.bias)]
        blocks.append(fields)
    return blocks


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
