"""Multi-head attention of every kind: self- or cross-attention, with every family's positions.

The fused kernel is used unless the scores themselves are needed; then the formula is computed step by step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import StackConfig
from hanmo.cores import SHORT_ATTENTION
from hanmo.nn.cache import Cache
from hanmo.nn.linear import Linear


@dataclass
class AttentionInputs:
    """The masks and positions of attention, the same for all blocks of a stack.

    mask: [b, 1, n, m], True where one may attend; None: everywhere, or with causal=True the lower triangle.
    bias: [b or 1, heads, n, m] added to the scores (T5).   rotary: [b or 1, n, key_dim] (RoFormer).
    relative: [b or 1, n, m] rows of relative_table [2 clip + 1, key_dim] (NEZHA).
    """

    mask: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None
    rotary: Tensor | None = None
    relative: Tensor | None = None
    relative_table: Tensor | None = None


class Attention(nn.Module):
    """softmax(q kᵀ · scale + bias) v for each head."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.num_heads, self.scale = stack.num_heads, stack.scale
        self.score_residual, self.dropout = stack.score_residual, stack.attention_dropout
        self.query = Linear(stack.hidden_size, stack.num_heads * stack.key_dim, bias=stack.bias)
        self.key = Linear(stack.hidden_size, stack.num_heads * stack.key_dim, bias=stack.bias)
        self.value = Linear(stack.hidden_size, stack.num_heads * stack.head_dim, bias=stack.bias)
        self.output = Linear(stack.num_heads * stack.head_dim, stack.hidden_size, bias=stack.bias)

    def forward(
        self,
        x: Tensor,
        inputs: AttentionInputs,
        *,
        memory: Tensor | None = None,
        cross: bool = False,
        cache: Cache | None = None,
        layer: int = 0,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from x [b, n, hidden_size] to itself, or with cross=True to memory [b, m, hidden_size].

        scores: [b, heads, n, m] of earlier blocks (RealFormer).   Returns ([b, n, hidden_size], new scores).
        """
        q = self._split(self.query(x))
        if cross and cache is not None and (kept := cache.memory[layer]) is not None:
            k, v = kept
        else:
            source = memory if cross else x
            if source is None:
                raise ValueError("memory is missing; cross-attention needs the encoder's output or a cache that has it")
            k, v = self._split(self.key(source)), self._split(self.value(source))
            if cross and cache is not None:
                cache.memory[layer] = k, v = k.contiguous(), v.contiguous()
        if not cross:
            if inputs.rotary is not None:
                q, k = rotate(q, inputs.rotary), rotate(k, inputs.rotary)
            if cache is not None:
                k, v = cache.append(layer, k, v)
        if self.score_residual == "none" and inputs.relative is None:
            out, scores = self._fused(q, k, v, inputs), None
        else:
            out, scores = self._plain(q, k, v, inputs, scores)
        return self.output(out.transpose(1, 2).flatten(2)), scores

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # [b, h, n, d]

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs) -> Tensor:
        if _float32_is_faster(q, k):
            with torch.autocast("cpu", enabled=False):
                return self._fused(q.float(), k.float(), v.float(), inputs).to(q.dtype)
        mask = inputs.mask
        if inputs.bias is not None:
            mask = inputs.bias if mask is None else inputs.bias.masked_fill(~mask, float("-inf"))
            mask = mask.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        if inputs.causal and mask is None and not dropout and _blocks_are_faster(q):
            return _causal_in_blocks(q, k, v, self.scale)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=inputs.causal and mask is None, dropout_p=dropout, scale=self.scale
        )

    def _plain(
        self, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs, before: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        scores = q @ k.transpose(-1, -2)  # [b, h, n, m]
        index = None
        if inputs.relative is not None and inputs.relative_table is not None:
            table = inputs.relative_table.to(q.dtype)
            index = inputs.relative[:, None].expand(len(q), self.num_heads, -1, -1)
            scores = scores + (q @ table.T).gather(-1, index)
        scores = scores * self.scale
        if inputs.bias is not None:
            scores = scores + inputs.bias
        own, scores = scores, scores if before is None else scores + before
        kept = {"cumulative": scores, "previous": own}.get(self.score_residual)
        mask = inputs.mask
        if mask is None and inputs.causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        out = weights @ v
        if index is not None:
            by_row = weights.new_zeros(*weights.shape[:-1], len(table)).scatter_add(-1, index, weights)
            out = out + by_row @ table
        return out, kept


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i+1) of x by their position's angles (RoFormer, arXiv 2104.09864).

    x: [b, h, n, d].   table: [b or 1, n, d], what `sinusoidal` gives.
    """
    sin = table[:, None, :, 0::2].to(x.dtype)  # [b, 1, n, d/2]
    cos = table[:, None, :, 1::2].to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def _trains_in_bfloat16(q: Tensor) -> bool:
    return torch.is_grad_enabled() and q.dtype == torch.bfloat16 and q.device.type == "cpu"


def _float32_is_faster(q: Tensor, k: Tensor) -> bool:
    short = max(q.shape[2], k.shape[2]) <= SHORT_ATTENTION
    return short and _trains_in_bfloat16(q) and not torch.compiler.is_compiling()


def _blocks_are_faster(q: Tensor) -> bool:
    # The fused kernel's backward pass is slow in bfloat16 on a CPU: 216 ms, here 76, both ways, for 16 x 6 x 512.
    return _trains_in_bfloat16(q) and torch.compiler.is_compiling()


def _causal_in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float | None, block: int = 128) -> Tensor:
    """softmax(q kᵀ · scale) v, row i attending to 0 … i; blocks of rows skip most of the masked columns."""
    scale = scale if scale is not None else q.shape[-1] ** -0.5
    out = []
    for start in range(0, q.shape[2], block):
        end = min(q.shape[2], start + block)
        scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2) * scale
        seen = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32)
        out.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(out, 2)
