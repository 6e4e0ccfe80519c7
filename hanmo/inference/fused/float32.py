"""The fused decode step in float32: one token of one row through all blocks of a torch stack on a CPU.

Knows which stacks and calls have it, and the addresses of their parameters; float32_kernel.py computes.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hanmo.checkpoint.source import Array
from hanmo.config import StackConfig
from hanmo.inference.fused.support import ACTIVATIONS, has_fused_step, kernels, most_threads
from hanmo.inference.fused.thread_pool import run_step
from hanmo.nn.attention import AttentionInputs
from hanmo.nn.cache import Cache
from hanmo.nn.linear import Linear
from hanmo.nn.norm import Norm
from hanmo.nn.stack import Stack

__all__ = ["fused_step"]

LEAST = 16 << 20
"""Numbers in the matrices that a step reads; fewer fit the processor's cache, where torch is fast enough."""

LAYERS = {
    "attention": ("query", "key", "value", "output"),
    "cross": ("query", "", "", "output"),  # the encoder's keys and values are in the cache
    "feed_forward": ("input", "gate", "", "output"),
}
"""Of each kind of sub-layer: its layers, by their numbers in the kernel."""

Pair = tuple[Tensor, Tensor]
Kept = dict[str, Sequence[Pair | None]]
Layout = tuple[Array, Tensor]
"""The kernel's `layers` [layer, sub-layer, 29] without keys and values, and the weight of norms that have none."""


def fused_step(stack: Stack, x: Tensor, inputs: dict[str, AttentionInputs], cache: Cache) -> Tensor | None:
    """Run x [1, 1, hidden_size] through all blocks and append its keys and values to the cache: the same shape.

    None for calls without a fused step: more tokens, other dtypes or devices, gradients, hooks, small or other stacks.
    """
    config = stack.config
    kept: Kept = {"attention": [*zip(cache.keys, cache.values, strict=True)], "cross": cache.memory}
    if (
        x.shape[:2] != (1, 1)
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or (stack.training and (config.dropout or config.attention_dropout))
        or not has_fused_step(config, "float32")
        or _numbers(config) < LEAST
        or any(each.mask is not None and not bool(each.mask.all()) for each in inputs.values())
        or not 0 < cache.length < cache.capacity
        or not all(_is_readable(kept[kind][0]) for kind in inputs)
        or any(module._forward_hooks or module._forward_pre_hooks for module in stack.blocks.modules())
    ):
        return None
    addresses = tuple([(parameter.data_ptr(), parameter.stride()) for parameter in stack.blocks.parameters()])
    known = _LAYOUTS.get(stack)
    if known is None or known[0] != addresses:
        known = _LAYOUTS[stack] = addresses, _layout(stack) if kernels("float32") is not None else None
    return None if known[1] is None else _run(config, known[1], x, inputs, kept, cache.length + 1)


_LAYOUTS: WeakKeyDictionary[Stack, tuple[tuple[Any, ...], Layout | None]] = WeakKeyDictionary()
"""Of each stack: the addresses of its parameters when it was last looked at, and the layout of its blocks then."""


def _numbers(stack: StackConfig) -> int:
    """Count the numbers of the matrices that a step reads."""
    attention = stack.num_heads * (stack.key_dim + stack.head_dim)
    outputs = {"attention": 2 * attention, "cross": attention, "feed_forward": (2 + stack.gated) * stack.feed_forward}
    layers = 1 if stack.shared_layers else stack.num_layers
    return layers * stack.hidden_size * sum(outputs[sublayer.kind] for sublayer in stack.order)


def _is_readable(pair: Pair | None) -> bool:
    """Tell whether keys and values are those of one row in float32."""
    return pair is not None and all(
        len(each) == 1 and each.dtype == torch.float32 and each.is_contiguous() for each in pair
    )


def _run(
    stack: StackConfig,
    layout: Layout,
    x: Tensor,
    inputs: dict[str, AttentionInputs],
    kept: Kept,
    length: int,
) -> Tensor:
    from hanmo.inference.fused.float32_kernel import step

    threads = min(torch.get_num_threads(), most_threads())
    layers, own = layout[0].copy(), inputs["attention"]
    biases = {kind: each.bias.contiguous() for kind, each in inputs.items() if each.bias is not None}
    for place, sublayer in enumerate(stack.order):
        bias = _address(biases.get(sublayer.kind))
        for layer, pair in enumerate(kept.get(sublayer.kind, ())):
            if pair is not None:
                room = pair[0].shape[2]
                count = length if sublayer.kind == "attention" else room
                layers[layer, place, 24:] = pair[0].data_ptr(), pair[1].data_ptr(), room, count, bias
    hidden = torch.empty(stack.hidden_size, dtype=torch.float32, device="cpu")
    widest = int(layers[..., 16:19].sum(-1).max()) + stack.hidden_size
    shared = np.empty(stack.num_heads * stack.head_dim + threads * widest, np.float32)
    sizes = stack.num_heads, stack.key_dim, stack.head_dim, ACTIVATIONS.index(stack.activation)
    numbers = np.float32(stack.scale), np.float32(stack.norm_eps), stack.norm == "rms"
    rotary = np.empty(0, np.float32) if own.rotary is None else own.rotary.reshape(-1).numpy()
    relative = np.empty(0, np.int64) if own.relative is None else own.relative.reshape(-1).numpy()
    table = np.empty((0, 0), np.float32) if own.relative_table is None else own.relative_table.numpy()
    given = x.reshape(-1).numpy(), layers.reshape(-1, layers.shape[-1]), sizes, *numbers, rotary, relative, table
    run_step(step, threads, *given, shared, hidden.numpy())
    return hidden.view(1, 1, -1)


def _layout(stack: Stack) -> Layout | None:
    """Find the parameters of all blocks; None if a class or layout is not supported."""
    ones = torch.ones(stack.config.hidden_size, device="cpu")
    blocks = []
    for block in stack.blocks:
        rows = [_row(block, sublayer.kind, ones) for sublayer in stack.config.order]
        if not all(rows):
            return None
        blocks.append(rows)
    return np.resize(np.array(blocks, np.int64), (stack.config.num_layers, *np.shape(blocks)[1:])), ones


def _row(block: Any, kind: str, ones: Tensor) -> list[int]:
    """Make a sub-layer's row of `float32_kernel.step`; [] if a class or layout is not supported."""
    matrices: list[int] = []
    widths: list[int] = []
    for number, name in enumerate(LAYERS[kind]):
        layer = getattr(getattr(block, kind), name, None)
        if layer is None:
            matrices += [0, 0, 0, 0]
            widths += [0]
            continue
        weight = getattr(layer, "weight", None)
        if type(layer) is not Linear or type(weight) is not nn.Parameter or weight.dtype != torch.float32:
            return []
        rows, columns = weight.stride()
        if 1 not in (rows, columns):
            return []
        matrices += [weight.data_ptr(), *((columns, 1) if rows == 1 else (rows, 0)), _address(layer.bias)]
        widths += [weight.shape[number == 3]]
    norms: list[int] = []
    for norm in [getattr(block, f"{kind}_{place}", None) for place in ("pre", "post")]:
        if norm is not None and type(norm) is not Norm:
            return []
        weight = None if norm is None else ones if norm.weight is None else norm.weight
        norms += [_address(weight), _address(getattr(norm, "bias", None))]
    return [*matrices, *widths, *norms, *[0] * 5]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
