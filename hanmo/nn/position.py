"""Where a token stands: the formulas of every kind of position. No parameters live here."""

import math

import torch
from torch import Tensor


def sinusoidal(positions: Tensor, width: int) -> Tensor:
    """Compute sines and cosines, interleaved: [..., width] (arXiv 1706.03762 with pairs side by side).

    positions: [...], any number type.   width: even.
    """
    frequency = 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / -width)
    angle = positions.float().unsqueeze(-1) * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i+1) of x by their position's angles (RoFormer, arXiv 2104.09864).

    x: [b, h, n, d].   table: [b or 1, n, d], what `sinusoidal` gives.
    """
    sin = table[:, None, :, 0::2].to(x.dtype)  # [b, 1, n, d/2]
    cos = table[:, None, :, 1::2].to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def hierarchical(table: Tensor, positions: Tensor, alpha: float) -> Tensor:
    """Look up positions beyond the table, as pairs of a coarse and a fine position (kexue.fm/archives/7947).

    table: [count, width].   positions: [b, n] below count².   Returns [b, n, width].
    """
    base = (table - alpha * table[:1]) / (1 - alpha)
    return alpha * base[positions // len(table)] + (1 - alpha) * base[positions % len(table)]


def distance(queries: Tensor, keys: Tensor) -> Tensor:
    """Give key position minus query position: [b, n, m] from [b, n] and [b, m]."""
    return keys[:, None, :] - queries[:, :, None]


def bucket(distance: Tensor, *, both_ways: bool, buckets: int, limit: int) -> Tensor:
    """Give T5's bucket of each distance: exact near, logarithmic far, one bucket from `limit` on (arXiv 1910.10683).

    both_ways: half of the buckets for keys to the right (an encoder); else those all count as distance 0.
    """
    offset: Tensor | int = 0
    back = -distance
    if both_ways:
        buckets //= 2
        offset = (back < 0).long() * buckets
        back = back.abs()
    else:
        back = back.clamp(min=0)
    exact = buckets // 2
    far = torch.log(back.clamp(min=1).float() / exact) / math.log(limit / exact) * (buckets - exact)
    far = (exact + far.long()).clamp(max=buckets - 1)
    return offset + torch.where(back < exact, back, far)
