"""Places, masks and distances of tokens as NumPy arrays: what hanmo.nn works out in torch, for the OpenVINO graphs.

Knows one StackConfig and the tokens that came before. Knows no graph and no weights. The formulas are those of
hanmo.nn.mask and hanmo.nn.position; sources stand there.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.config import StackConfig

__all__ = ["Tokens", "buckets", "key_mask", "waves"]

Array = npt.NDArray[Any]
UNSEEN = -np.inf


@dataclass
class Tokens:
    """The tokens of some rows, old and new: what `inputs` needs to know of those that are in the cache."""

    stack: StackConfig
    positions: Array = field(default_factory=lambda: np.zeros((1, 0), np.int64))  # [b or 1, m]
    order: Array = field(default_factory=lambda: np.zeros((1, 0), np.int64))  # [b or 1, m]
    real: Array | None = None  # [b, m], None: all are

    def append(
        self, ids: Array, *, segment: int | Array = 0, real: Array | None = None, positions: Array | None = None
    ) -> dict[str, Array]:
        """Give a graph's inputs for new tokens, ids [b, n], and remember them.

        segment: of all of them, or of each, [b, n].   real: [b, n], False where no token may attend to it.
        positions: [b or 1, n]; None counts the real tokens, for what is not real is padding on the left.
        """
        rows, count = ids.shape
        start = self.positions.shape[1]
        if real is not None or self.real is not None:
            old = np.ones((rows, start), bool) if self.real is None else self.real
            self.real = np.concatenate((old, np.ones((rows, count), bool) if real is None else real), 1)
        places = np.arange(start, start + count)[None]
        new = places if self.real is None else np.maximum(self.real.cumsum(1) - 1, 0)[:, start:]
        new = new if positions is None else positions
        segments = np.atleast_2d(segment)
        self.positions = _join(self.positions, new)
        self.order = _join(self.order, self._order(places, segments))
        stack = self.stack
        inputs: dict[str, Array] = {"ids": ids.astype(np.int32), "mask": self._mask(rows, count)}
        if stack.segments:
            inputs["segments"] = segments.astype(np.int32)
        match stack.position:
            case "learned":
                inputs["positions"] = (new + stack.position_offset).astype(np.int32)
            case "sinusoidal":
                inputs["waves"] = waves(new, stack.embedding_size)
            case "rotary":
                table = waves(new, stack.key_dim).reshape(len(new), 1, count, -1, 2)
                inputs["sines"], inputs["cosines"] = table[..., :1].copy(), table[..., 1:].copy()
            case "relative":
                clip = stack.relative_clip
                inputs["distances"] = (self._distances(new).clip(-clip, clip) + clip).astype(np.int32)
            case "buckets":
                inputs["buckets"] = buckets(self._distances(new), stack, both_ways=stack.mask == "full")
        return inputs

    def memory_buckets(self, total: int, count: int) -> Array:
        """Give the buckets of the last `count` tokens' distances to a memory of so many tokens."""
        return buckets(np.arange(total)[None, None] - self.positions[:, -count:, None], self.stack, both_ways=False)

    def take(self, rows: list[int]) -> None:
        """Keep these rows in this order."""
        if len(self.positions) > 1:
            self.positions = self.positions[rows]
        if len(self.order) > 1:
            self.order = self.order[rows]
        if self.real is not None:
            self.real = self.real[rows]

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        self.positions, self.order = self.positions[:, :length], self.order[:, :length]
        self.real = None if self.real is None else self.real[:, :length]

    def _order(self, places: Array, segments: Array) -> Array:
        if self.stack.mask == "causal":
            return places
        if self.stack.mask == "full":
            return np.zeros_like(places)
        before = self.order[:, -1:] if self.order.shape[1] else np.zeros((1, 1), np.int64)
        return before + np.broadcast_to(segments, (len(segments), places.shape[1])).cumsum(1)

    def _mask(self, rows: int, count: int) -> Array:
        visible = self.order[:, None, :] <= self.order[:, -count:, None]
        if self.real is not None:
            visible = visible & self.real[:, None, :]
            visible |= ~visible.any(-1, keepdims=True)  # padding sees everything, so that no row is without a key
        # One mask for many rows is read wrongly behind the first by OpenVINO's attention in bfloat16 (2026.4.1).
        visible = np.broadcast_to(visible, (rows, *visible.shape[1:]))
        return np.where(visible, np.float32(0), np.float32(UNSEEN))[:, None]

    def _distances(self, new: Array) -> Array:
        return self.positions[:, None, :] - new[:, :, None]


def key_mask(real: Array) -> Array:
    """Give the mask of a memory for cross-attention: [b, 1, 1, m] from [b, m]."""
    return np.where(real, np.float32(0), np.float32(UNSEEN))[:, None, None]


def waves(places: Array, size: int) -> Array:
    """Compute sines and cosines, interleaved: [..., size]."""
    frequency = 10000.0 ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(-size))
    angle = places[..., None].astype(np.float32) * frequency.astype(np.float32)
    return np.stack((np.sin(angle), np.cos(angle)), -1).reshape(*places.shape, size)


def buckets(distance: Array, stack: StackConfig, *, both_ways: bool) -> Array:
    """Give T5's bucket of each distance."""
    count, offset = stack.buckets, np.zeros_like(distance)
    back = -distance
    if both_ways:
        count //= 2
        offset = (back < 0) * count
        back = np.abs(back)
    else:
        back = np.maximum(back, 0)
    exact = count // 2
    scale = np.float32(math.log(stack.bucket_distance / exact))
    far = np.log(np.maximum(back, 1).astype(np.float32) / exact) / scale * (count - exact)
    far = np.minimum(exact + far.astype(np.int64), count - 1)
    return (offset + np.where(back < exact, back, far)).astype(np.int32)


def _join(old: Array, new: Array) -> Array:
    rows = max(len(old), len(new))
    return np.concatenate((np.broadcast_to(old, (rows, old.shape[1])), np.broadcast_to(new, (rows, new.shape[1]))), 1)
