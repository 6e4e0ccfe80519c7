"""Positions, distances and masks of tokens, written once for torch and NumPy. No parameters, and no import of torch.

xp is `array_api_compat.torch` or `array_api_compat.numpy`; callers pass it, for torch.compile cannot trace a search.

A query may attend to a key when the key's order is not greater than its own. full: all orders are 0.  causal: the order
is the index in the text.  prefix (UniLM, arXiv 1905.03197): the running sum of the segment ids, so that segment 0 is
visible to all of itself.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

Array: TypeAlias = Any


@dataclass
class Tokens:
    """What masks depend on, of all tokens of some rows, those in the cache first. Never changed in place.

    positions: [b or 1, m], None before the first token.   order: [b or 1, m], None for a full mask.
    mask: [b, m], True where a token is real; None: all are.
    """

    positions: Array = None
    order: Array = None
    mask: Array = None

    @property
    def length(self) -> int:
        """Number of tokens of each row."""
        return 0 if self.positions is None else int(self.positions.shape[1])

    def append(
        self,
        kind: str,
        ids: Array,
        xp: Any,
        *,
        segments: Array | None = None,
        mask: Array | None = None,
        positions: Array | None = None,
    ) -> "Tokens":
        """Add new tokens, ids or vectors [b, n, …], for a mask of this kind: "full", "causal" or "prefix".

        segments: [b or 1, n].   mask: [b, n].   positions: [b or 1, n]; None counts the real tokens before each, so
        that padding on the left shifts nothing.
        """
        (rows, count), start = ids.shape[:2], self.length
        where = {"device": getattr(ids, "device", None)}
        if mask is not None or self.mask is not None:
            old, new = (
                xp.ones((rows, size), dtype=xp.bool, **where) if part is None else part
                for part, size in ((self.mask, start), (mask, count))
            )
            mask = xp.concat((old, new), axis=1)
        indices = xp.arange(start, start + count, **where)[None]
        if positions is None:
            positions = indices if mask is None else (mask.cumsum(1) - 1).clip(0)[:, start:]
        order = None
        if kind == "causal":
            order = indices
        elif kind == "prefix":
            if segments is None:
                raise ValueError("segments is missing; a prefix mask needs segment ids (0 = prefix, 1 = written text)")
            order = segments.cumsum(1) if self.order is None else self.order[:, -1:] + segments.cumsum(1)
        return Tokens(
            _join(self.positions, positions, xp), None if order is None else _join(self.order, order, xp), mask
        )

    def visible(self, count: int) -> Array:
        """Tell which tokens the last `count` may attend to: [b, 1, count, m], True for yes.

        A query that could attend to nothing (padding) attends to everything, so that no row of scores is all -inf.
        """
        if self.order is None:
            zeros = self.positions[:1] * 0
            return visible(zeros[:, -count:], zeros[:, :1], self.mask)
        return visible(self.order[:, -count:], self.order, self.mask)

    def take(self, rows: Array) -> "Tokens":
        """Keep these rows, in this order; rows: [new b], integers."""
        kept = {name: each for name, each in vars(self).items() if each is not None}
        shared = {name for name, each in kept.items() if len(each) == 1 and name != "mask"}
        return Tokens(**{name: each if name in shared else each[rows] for name, each in kept.items()})

    def unused(self) -> int:
        """Count the first tokens that are padding in all rows."""
        return 0 if self.mask is None else self.mask.any(0).tolist().index(True)

    def join(self, other: "Tokens", rows: int, others: int, xp: Any) -> "Tokens":
        """Put so many rows before those of others, padded on the left and without unused tokens."""
        parts = [(self, rows, self.unused()), (other, others, other.unused())]
        length = max(tokens.length - start for tokens, _, start in parts)
        where = {"device": getattr(self.positions, "device", None)}
        joined: dict[str, list[Array]] = {"positions": [], "order": [], "mask": []}
        for tokens, count, start in parts:
            mask = xp.ones((count, tokens.length), dtype=xp.bool, **where) if tokens.mask is None else tokens.mask
            for name, found in (("positions", tokens.positions), ("order", tokens.order), ("mask", mask)):
                kept = xp.broadcast_to(found, (count, tokens.length))[:, start:]
                padding = xp.zeros((count, length - tokens.length + start), dtype=kept.dtype, **where)
                joined[name].append(xp.concat((padding, kept), axis=1))
        return Tokens(**{name: xp.concat(each) for name, each in joined.items()})

    def cut(self, length: int) -> "Tokens":
        """Forget every token from `length` on."""
        return Tokens(**{name: each[:, :length] for name, each in vars(self).items() if each is not None})


def visible(queries: Array, keys: Array, mask: Array | None) -> Array:
    """Compare orders [b or 1, n] and [b or 1, m], and leave out padding, where mask [b, m] is False: [b, 1, n, m]."""
    found = keys[:, None, :] <= queries[:, :, None]
    if mask is not None:
        found = found & mask[:, None, :]
        found = found | ~found.any(-1, keepdims=True)
    return found[:, None]


def sinusoidal(positions: Array, size: int, xp: Any, *, dtype: Any = None) -> Array:
    """Compute sines and cosines, interleaved: [..., size] (arXiv 1706.03762 with pairs side by side); size: even.

    dtype: of the result and the computation; None: float32.
    """
    where = {"device": getattr(positions, "device", None)}
    dtype = xp.float32 if dtype is None else dtype
    frequency = 10000.0 ** (xp.arange(0, size, 2, dtype=dtype, **where) / -size)
    angle = xp.astype(positions, dtype)[..., None] * frequency
    return xp.stack((xp.sin(angle), xp.cos(angle)), axis=-1).reshape(*positions.shape, size)


def hierarchical(table: Array, positions: Array, alpha: float) -> Array:
    """Look up positions beyond the table, as pairs of a coarse and a fine position (kexue.fm/archives/7947).

    table: [count, size].   positions: [b, n] below count².   Returns [b, n, size].
    """
    base = (table - alpha * table[:1]) / (1 - alpha)
    return alpha * base[positions // len(table)] + (1 - alpha) * base[positions % len(table)]


def distance(queries: Array, keys: Array) -> Array:
    """Give key position minus query position: [b, n, m] from [b, n] and [b, m]."""
    return keys[:, None, :] - queries[:, :, None]


def bucket(distance: Array, xp: Any, *, both_ways: bool, buckets: int, limit: int) -> Array:
    """Give T5's bucket of each distance: exact near, logarithmic far, one bucket from `limit` on (arXiv 1910.10683).

    both_ways: half of the buckets for keys to the right (an encoder); else those all count as distance 0.
    """
    offset: Array = 0
    back = -distance
    if both_ways:
        buckets //= 2
        offset = xp.astype(back < 0, xp.int64) * buckets
        back = abs(back)
    else:
        back = back.clip(0)
    exact = buckets // 2
    far = xp.log(xp.astype(back.clip(1), xp.float32) / exact) / math.log(limit / exact) * (buckets - exact)
    far = (exact + xp.astype(far, xp.int64)).clip(None, buckets - 1)
    return offset + xp.where(back < exact, back, far)


def _join(old: Array | None, new: Array, xp: Any) -> Array:
    if old is None:
        return new
    rows = max(len(old), len(new))
    return xp.concat([xp.broadcast_to(each, (rows, each.shape[1])) for each in (old, new)], axis=1)
