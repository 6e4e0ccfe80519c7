"""Who sees whom: every kind of mask is one comparison of two orders, and a mask of the keys that are real.

A key is visible to a query when its order is not greater. full: all orders are 0.  causal: the order is the place in
the text.  prefix (UniLM, arXiv 1905.03197): the running sum of the segment ids, so that segment 0 sees itself whole.
"""

import torch
from torch import Tensor


def visible(query_order: Tensor, key_order: Tensor, key_mask: Tensor | None) -> Tensor:
    """Compare orders: [b, 1, n, m], True where a query may attend.

    query_order: [b or 1, n].   key_order: [b or 1, m].   key_mask: [b, m], True where the key is real.
    A query that would see nothing (padding) sees everything instead, so that no row is all -inf.
    """
    mask = key_order[:, None, :] <= query_order[:, :, None]
    if key_mask is not None:
        mask = mask & key_mask[:, None, :]
        mask = mask | ~mask.any(-1, keepdim=True)
    return mask[:, None]


def order_of(kind: str, positions: Tensor, segments: Tensor | None, before: Tensor | None) -> Tensor:
    """Give the order of new tokens: [b or 1, n].

    kind: "causal" or "prefix".   positions: [b or 1, n] places in the text, padding included.
    before: [b, 1] order of the token before them, for the running sum of a continued text.
    """
    if kind == "causal":
        return positions
    if segments is None:
        raise ValueError("segments is missing; a prefix mask is told by segment ids (0 = prefix, 1 = written text)")
    order = segments.long().cumsum(1)
    return order if before is None else order + before


def real_positions(mask: Tensor) -> Tensor:
    """Count the real tokens before each token: [b, n]; padding on the left shifts nothing."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def places(count: int, start: int, device: torch.device) -> Tensor:
    """Give the places start … start + count - 1: [1, count]."""
    return torch.arange(start, start + count, device=device)[None]
