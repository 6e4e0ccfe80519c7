"""The fused decode step of a block on a GPU, and linear layers with int8 weights.

Knows when `kernels.py` can be used; otherwise the same formulas run in plain torch.
"""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.checkpoint.quantized import round_int8, scales_int8
from hanmo.model import Model
from hanmo.nn.activation import activate
from hanmo.nn.attention import AttentionInputs
from hanmo.nn.block import Block
from hanmo.nn.cache import Cache
from hanmo.nn.norm import Norm


class Int8Linear(nn.Module):
    """A linear layer with weights from -127 to 127 and a scale for each output, quantized from another's.

    The bias is shared with the other layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scales = scales_int8(weight)
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", round_int8(weight, scales).contiguous())
        self.register_buffer("scale", scales[:, 0])
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]; returns [..., out]."""
        return _linear(x.flatten(0, -2), [self])[0].view(*x.shape[:-1], -1)


def quantized(model: Model) -> Model:
    """Copy a model with the weights of all linear layers in int8; everything else is shared."""
    shared: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers())}
    layers = {id(each): Int8Linear(each) for each in model.modules() if isinstance(each, nn.Linear)}
    return copy.deepcopy(model, shared | layers)


def step(block: Block, x: Tensor, inputs: AttentionInputs, cache: Cache, *, layer: int, slot: Tensor) -> Tensor:
    """Run a block over one new token of each row, as its `forward` does: x [rows, hidden_size] → the same shape.

    slot: as in `kernels.attend`.
    """
    for sublayer in block.order:
        module = getattr(block, sublayer.kind)
        h = _norm(x, getattr(block, f"{sublayer.kind}_pre")) if sublayer.pre else x
        if sublayer.kind == "feed_forward":
            h = _linear(h, [module.input], activation=module.activation)[0]
        else:
            query, key, value = _linear(h, [module.query, module.key, module.value])
            keys, values = cache.keys[layer], cache.values[layer]
            if (kernels := _kernels(x)) is not None:
                h = kernels.attend(query, key, value, keys, values, slot, scale=module.scale)
            else:
                query, key, value = (each.view(len(x), module.num_heads, 1, -1) for each in (query, key, value))
                keys, values = cache.append(layer, key, value)
                mask = inputs.bias
                h = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=module.scale).flatten(1)
        x = _linear(h, [module.output], residual=x)[0]
        if sublayer.post:
            x = _norm(x, getattr(block, f"{sublayer.kind}_post"))
    return x


def _norm(x: Tensor, module: Norm) -> Tensor:
    """Apply a norm without a condition to x [rows, hidden_size]."""
    if (kernels := _kernels(x)) is None:
        return module(x)
    return kernels.norm(x, module.weight, module.bias, epsilon=module.eps, centered=module.kind == "layer")


def _linear(
    x: Tensor, layers: list[Any], *, activation: str = "linear", residual: Tensor | None = None
) -> Tensor | list[Tensor]:
    """Apply layers of one size to x [rows, in], one result [rows, out] for each: residual + act(layer(x))."""
    kernels = _kernels(x)
    int8 = isinstance(layers[0], Int8Linear)
    # With more rows than a tile, products are not bound by memory, and torch's are faster.
    most = 0 if kernels is None else kernels.MOST_ROWS if int8 else kernels.MOST_ROWS // 4
    contiguous = all(layer.weight.is_contiguous() for layer in layers)
    if kernels is not None and len(x) <= most and contiguous and activation in kernels.ACTIVATIONS:
        scales = [layer.scale for layer in layers] if int8 else None
        biases = None if layers[0].bias is None else [layer.bias for layer in layers]
        weights = [layer.weight for layer in layers]
        return kernels.linear(x, weights, scales, biases, activation=activation, residual=residual)
    results = []
    for layer in layers:
        y = F.linear(x, layer.weight.to(x.dtype), None if int8 else layer.bias)
        if int8:
            y = (y * layer.scale).to(x.dtype)
            y = y if layer.bias is None else y + layer.bias
        y = activate(y, activation)
        results.append(y if residual is None else residual + y)
    return results


def _kernels(x: Tensor) -> Any:
    """Give the module of kernels if it supports this tensor here; float32 is left to torch, which is exact."""
    return _module(x.device) if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) else None


@cache
def _module(device: torch.device) -> Any:
    if torch.cuda.get_device_capability(device) < (8, 0):  # before Ampere there is no bfloat16
        return None
    try:
        from hanmo.inference.cuda import kernels
    except ImportError:  # torch comes without Triton on some systems
        return None
    return kernels
