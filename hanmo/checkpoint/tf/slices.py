"""Keys and layout of the slices that a partitioned variable is stored in.

Knows TensorFlow's ordered code, in which the key of a slice is written (`EncodeTensorNameSlice`). Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence

from hanmo.errors import CheckpointError, CorruptFile

__all__ = ["Extent", "partition_axis", "slice_key"]

Extent = tuple[int, int | None]
"""Start and length along one axis; length None is the full axis."""

_ESCAPED = {0x00: b"\x00\xff", 0xFF: b"\xff\x00"}


def slice_key(name: bytes, extents: Sequence[Extent]) -> bytes:
    """Return the key under which a slice of the variable `name` is stored in the index."""
    escaped = b"".join(_ESCAPED.get(byte, bytes([byte])) for byte in name)
    key = b"\x00" + escaped + b"\x00\x01" + _unsigned(len(extents))
    for start, length in extents:
        key += _signed(start) + _signed(-1 if length is None else length)
    return key


def partition_axis(shape: Sequence[int], slices: Sequence[Sequence[Extent]]) -> tuple[int, list[int]]:
    """Return (axis, order): slices in this order, joined along the axis, make the complete tensor.

    Raises CorruptFile if they do not make it, and CheckpointError if it is cut along more than one axis.
    """
    if bad := [extents for extents in slices if len(extents) != len(shape)]:
        raise CorruptFile(f"slice of {len(bad[0])} axes in a tensor of {len(shape)}")
    if not shape:
        if len(slices) != 1:
            raise CorruptFile(f"a scalar in {len(slices)} slices")
        return 0, [0]
    resolved = [
        [(start, size if length is None else length) for (start, length), size in zip(extents, shape, strict=True)]
        for extents in slices
    ]
    cut = sorted({axis for bounds in resolved for axis, bound in enumerate(bounds) if bound != (0, shape[axis])})
    if len(cut) > 1:
        raise CheckpointError(
            f"the variable is cut along {len(cut)} axes {cut}, Hanmo joins slices along one; "
            "save it again without a partitioner"
        )
    axis = cut[0] if cut else 0
    order = sorted(range(len(slices)), key=lambda i: resolved[i][axis])
    at = 0
    for i in order:
        start, length = resolved[i][axis]
        if start != at or length < 0:
            raise CorruptFile(f"slices have a hole or overlap at {at} of axis {axis}: next is {start}, {length}")
        at += length
    if at != shape[axis]:
        raise CorruptFile(f"slices end at {at} of axis {axis}, which has {shape[axis]}")
    return axis, order


def _unsigned(value: int) -> bytes:
    body = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(body)]) + body


def _signed(value: int) -> bytes:
    magnitude = ~value if value < 0 else value
    size = max(1, -(-(magnitude.bit_length() + 1) // 7))  # one sign bit, 7 payload bits a byte
    body = value & (1 << 8 * size) - 1
    header = (1 << size) - 1 << 8 * size - size  # as many ones as bytes, flipped into the sign's bits
    return (body ^ header).to_bytes(size, "big")
