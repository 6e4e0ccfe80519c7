"""The inputs of an OpenVINO graph for new tokens, as NumPy arrays. Knows one StackConfig; no graph and no weights."""

from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import numpy as xp

from hanmo.config import StackConfig
from hanmo.nn.position import Tokens, bucket, distance, sinusoidal

__all__ = ["additive", "append", "buckets"]

Array = npt.NDArray[Any]


def append(
    stack: StackConfig,
    tokens: Tokens,
    ids: Array,
    *,
    segment: int | Array = 0,
    mask: Array | None = None,
    positions: Array | None = None,
) -> tuple[Tokens, dict[str, Array]]:
    """Add new tokens, ids [b, n], to those before them: all tokens, and the graph's inputs for the new ones.

    segment: of all of them, or [b or 1, n].   mask, positions: as for `Tokens.append`.
    """
    rows, count = ids.shape
    segments = np.atleast_2d(segment)
    spread = np.broadcast_to(segments, (len(segments), count))
    tokens = tokens.append(stack.mask, ids, xp, segments=spread, mask=mask, positions=positions)
    new = tokens.positions[:, -count:]
    # OpenVINO's attention in bfloat16 applies a mask that rows share wrongly behind the first row (2026.4.1).
    visible = np.broadcast_to(tokens.visible(count), (rows, 1, count, tokens.length))
    inputs: dict[str, Array] = {"ids": ids.astype(np.int32), "mask": additive(visible)}
    if stack.segments:
        inputs["segments"] = segments.astype(np.int32)
    match stack.position:
        case "learned":
            inputs["positions"] = (new + stack.position_offset).astype(np.int32)
        case "sinusoidal":
            inputs["waves"] = sinusoidal(new, stack.embedding_size, xp)
        case "rotary":
            table = sinusoidal(new, stack.key_dim, xp).reshape(len(new), 1, count, -1, 2)
            inputs["sines"], inputs["cosines"] = table[..., :1].copy(), table[..., 1:].copy()
        case "relative":
            clip = stack.relative_clip
            inputs["distances"] = (distance(new, tokens.positions).clip(-clip, clip) + clip).astype(np.int32)
        case "buckets":
            inputs["buckets"] = buckets(stack, new, tokens.positions)
    return tokens, inputs


def buckets(stack: StackConfig, queries: Array, keys: Array) -> Array:
    """Give T5's buckets of the distances from queries [b, n] to keys [b, m], which an encoder has on both sides."""
    both_ways, far = stack.mask == "full", stack.bucket_distance
    found: Array = bucket(distance(queries, keys), xp, both_ways=both_ways, buckets=stack.buckets, limit=far)
    return found.astype(np.int32)


def additive(visible: Array) -> Array:
    """Turn a mask that is True where one may attend into what is added to scores: 0 or -inf, float32."""
    return np.where(visible, np.float32(0), np.float32(-np.inf))
