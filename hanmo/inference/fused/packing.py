"""The order of int8 and int4 weights for the fused step, and its sizes; see quantized_blocks.py. NumPy only."""

import numpy as np

from hanmo.checkpoint.source import Array

__all__ = [
    "BETWEEN",
    "GROUP",
    "LANES",
    "NARROW",
    "group_size",
    "pack_int4",
    "pack_int8",
    "pack_scales",
    "unpack_int4",
    "unpack_int8",
    "unpack_scales",
]

LANES = 16  # outputs side by side; the last block of a matrix is padded with zeros
GROUP, NARROW = 128, 32
BETWEEN = 64  # bytes between the quantized inputs of two tokens: without them the cache would hold few at once


def group_size(inputs: int) -> int:
    """Give the number of inputs of a matrix that share a scale: 128, or 32 where these divide them, or else 0."""
    if inputs % GROUP == 0:
        return GROUP
    return NARROW if inputs % NARROW == 0 else 0


def pack_int8(weights: Array) -> Array:
    """int8 [out, in] → int8 [out / 16, in / 4, 16, 4]."""
    return _blocks(weights, 4)


def unpack_int8(packed: Array, rows: int) -> Array:
    """Invert `pack_int8`."""
    return _rows(packed, rows)


def pack_int4(weights: Array) -> Array:
    """uint8 [out, in / 2], two numbers in a byte → uint8 [out / 16, in / 8, 16, 4], unsigned halves that are 8 more."""
    blocks = _blocks(weights, 4) ^ np.uint8(0x88)
    low, high = blocks & 15, blocks >> 4  # numbers 0, 2, 4, 6 and 1, 3, 5, 7 of each 8
    numbers = np.stack([low, high], -1).reshape(*blocks.shape[:-1], 8)
    packed: Array = numbers[..., :4] | numbers[..., 4:] << 4
    return packed


def unpack_int4(packed: Array, rows: int) -> Array:
    """Invert `pack_int4`."""
    numbers = np.concatenate([packed & 15, packed >> 4], -1)
    return _rows((numbers[..., 0::2] | numbers[..., 1::2] << 4) ^ np.uint8(0x88), rows)


def pack_scales(scales: Array) -> Array:
    """float32 [out, groups or 1] → float32 [out / 16, groups or 1, 16]."""
    return _blocks(scales, 1)[..., 0]


def unpack_scales(packed: Array, rows: int) -> Array:
    """Invert `pack_scales`."""
    return _rows(packed[..., None], rows)


def _blocks(matrix: Array, count: int) -> Array:
    """[out, n] → [out / 16, n / count, 16, count]."""
    rows, columns = matrix.shape
    padded = np.zeros((-(-rows // LANES) * LANES, columns), matrix.dtype)
    padded[:rows] = matrix
    return np.ascontiguousarray(padded.reshape(-1, LANES, columns // count, count).transpose(0, 2, 1, 3))


def _rows(blocks: Array, rows: int) -> Array:
    """Invert `_blocks`."""
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3).reshape(len(blocks) * LANES, -1)[:rows])
