"""The index of a tensor bundle: which tensors there are, and where their bytes are.

Knows the messages of `tensor_bundle.proto` and checks them against each other. Opens the index file only; the data
files are checked when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hanmo.checkpoint.source import STORAGE, TensorInfo, check_shape, storage_bytes
from hanmo.checkpoint.tf.protobuf import fields, signed64
from hanmo.checkpoint.tf.sstable import read_table
from hanmo.errors import CheckpointError, CorruptFile, MissingFile
from hanmo.files import read_bytes

DTYPES: Mapping[int, str] = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16",
    17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
    24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 28: "float8_e5m2fnuz", 29: "int4", 30: "uint4",
}  # fmt: skip
"""TensorFlow's DataType -> our name. Those that are not in STORAGE can be listed but not read."""

MAX_SHARDS = 99_999  # the file names have five digits
_MAX_RANK = 32  # NumPy 1's limit

Extent = tuple[int, int | None]
"""Start and length of a slice along one axis; length None is the full axis."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the index.

    shard, offset: of its `info.nbytes` bytes.   checksum: their masked crc32c.
    parts: of a partitioned variable its slices, joined along `axis`; then it has no bytes of its own.
    """

    info: TensorInfo
    shard: int
    offset: int
    checksum: int
    parts: tuple[Entry, ...] = ()
    axis: int = 0

    @property
    def stored(self) -> tuple[Entry, ...]:
        """The entries that have bytes: the slices, or this one."""
        return self.parts or (self,)

    @property
    def place(self) -> tuple[int, int]:
        """Shard and offset of its first byte."""
        return self.shard, self.offset


class _Raw(NamedTuple):
    """A BundleEntryProto as in the table."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[tuple[Extent, ...], ...]


def read_index(path: Path) -> tuple[int, dict[str, Entry]]:
    """Return (number of shards, entries by name, sorted). Takes at most about 64 MiB + 8 × the file.

    Raises MissingFile, or CorruptFile and CheckpointError that name the file and what is wrong.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing; a TensorFlow checkpoint cannot be read without its index") from None
    limit = left = (40 << 20) + 4 * len(data)

    def spend(amount: int) -> None:
        """Limit the memory that a small hostile file may unpack to."""
        nonlocal left
        left -= amount
        if left < 0:
            raise CorruptFile(f"lists more than {limit:,} bytes of memory can hold for a file of its size")

    shards = 0
    complete: dict[str, _Raw] = {}
    slices: dict[bytes, _Raw] = {}
    try:
        for key, value in read_table(data):
            if not key:
                shards = _header(value)
                continue
            if not shards:
                raise CorruptFile("the header, under the empty key, is missing")
            spend(700 + 4 * len(key))
            raw = _entry(value, spend)
            if key[:1] == b"\0":
                slices[key] = raw
                continue
            try:
                complete[key.decode()] = raw
            except UnicodeDecodeError:
                raise CorruptFile(f"tensor name {key[:200]!r} is not UTF-8") from None
        if not shards:
            raise CorruptFile("the table is empty, not even the header is there")
        entries = {name: _resolve(name, raw, slices, shards) for name, raw in complete.items()}
        if slices:
            raise CorruptFile(f"slice {next(iter(slices))[:200]!r} belongs to no tensor")
        _refuse_overlap(entries)
    except CheckpointError as error:
        advice = "; the index is damaged, download or copy it again" if isinstance(error, CorruptFile) else ""
        raise type(error)(f"{path}: {error}{advice}") from None
    return shards, entries


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise CorruptFile(f"protobuf field holds {len(value)} bytes where a number was expected")
    return signed64(value)


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise CorruptFile(f"protobuf field holds the number {value} where a message was expected")
    return value


def _numbers(value: int | bytes) -> dict[int, int]:
    """Return the first two fields of a message of numbers; others are ignored."""
    return {number: _number(inner) for number, inner in fields(_message(value)) if number in (1, 2)}


def _header(message: bytes) -> int:
    """Return the number of shards."""
    found = {number: value for number, value in fields(message) if number in (1, 2, 3)}
    shards, order = _number(found.get(1, 0)), _number(found.get(2, 0))
    minimum = _numbers(found.get(3, b"")).get(2, 0)
    if not 1 <= shards <= MAX_SHARDS:
        raise CorruptFile(f"header claims {shards:,} shards; expected 1 to {MAX_SHARDS:,}")
    if order:
        raise CheckpointError("the checkpoint is big-endian; save it again on a little-endian machine")
    if minimum > 1:
        raise CheckpointError(f"the checkpoint needs a reader of version {minimum}; Hanmo knows version 1")
    return shards


def _entry(message: bytes, spend: Callable[[int], None]) -> _Raw:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    slices = []
    for number, value in fields(message):
        if number in numbers:
            numbers[number] = _number(value)
        elif number == 2:
            shape = tuple(axis.get(1, 0) for axis in _axes(_message(value), 2, "tensor"))
            for axis, size in enumerate(shape):
                if size < 0:
                    raise CorruptFile(f"axis {axis} claims a size of {size:,}")
        elif number == 7:
            extents = tuple((axis.get(1, 0), axis.get(2)) for axis in _axes(_message(value), 1, "slice"))
            spend(2_000 + 200 * len(extents))  # more than they take: they are slow to parse too
            slices.append(extents)
    spend(40 * len(shape))
    return _Raw(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], tuple(slices))


def _axes(message: bytes, wanted: int, what: str) -> list[dict[int, int]]:
    """Return the numbers of each axis of a TensorShapeProto or TensorSliceProto, which are under the field `wanted`."""
    axes: list[dict[int, int]] = []
    for number, value in fields(message):
        if number == wanted:
            axes.append(_numbers(value))
        elif number == 3 and value and what == "tensor":
            raise CorruptFile("a tensor of unknown rank")
        if len(axes) > _MAX_RANK:
            raise CorruptFile(f"a {what} of more than {_MAX_RANK} axes")
    return axes


def _resolve(name: str, raw: _Raw, slices: dict[bytes, _Raw], shards: int) -> Entry:
    """Check one tensor's claims, and find and take out its slices."""
    try:
        if not raw.slices:
            return _dense(name, raw, shards)
        axis, order = partition_axis(raw.shape, raw.slices)
        parts = [_part(name, raw, raw.slices[i], slices, shards) for i in order]
    except CheckpointError as error:
        raise type(error)(f"tensor {name[:200]!r}: {error}") from None
    info = TensorInfo(name, parts[0].info.dtype, raw.shape, sum(part.info.nbytes for part in parts))
    return Entry(info, parts[0].shard, parts[0].offset, 0, tuple(parts), axis)


def _dense(name: str, raw: _Raw, shards: int) -> Entry:
    dtype = DTYPES.get(raw.dtype)
    if dtype is None:
        raise CorruptFile(f"dtype {raw.dtype} is none of TensorFlow's")
    if not 0 <= raw.shard < shards:
        raise CorruptFile(f"claims shard {raw.shard:,}; there are {shards:,}")
    if raw.offset < 0 or raw.size < 0 or raw.offset + raw.size >= 1 << 63:
        raise CorruptFile(f"claims {raw.size:,} bytes at offset {raw.offset:,}")
    check_shape(raw.shape, "it")
    if dtype in STORAGE and (needed := storage_bytes(dtype, raw.shape)) != raw.size:
        raise CorruptFile(f"claims {raw.size:,} bytes, but {dtype}{list(raw.shape)} takes {needed:,}")
    return Entry(TensorInfo(name, dtype, raw.shape, raw.size), raw.shard, raw.offset, raw.checksum & 0xFFFFFFFF)


def _part(name: str, tensor: _Raw, extents: tuple[Extent, ...], slices: dict[bytes, _Raw], shards: int) -> Entry:
    raw = slices.pop(slice_key(name.encode(), extents), None)
    if raw is None:
        raise CorruptFile(f"its slice {list(extents)} is not in the index")
    shape = tuple(size if length is None else length for (_, length), size in zip(extents, tensor.shape, strict=True))
    if (raw.dtype, raw.shape, raw.slices) != (tensor.dtype, shape, ()):
        raise CorruptFile(
            f"its slice {list(extents)} is of dtype {raw.dtype} and shape {list(raw.shape)}; "
            f"expected {tensor.dtype} and {list(shape)}"
        )
    if DTYPES.get(raw.dtype) not in STORAGE:
        raise CheckpointError(f"slices of dtype {DTYPES.get(raw.dtype, raw.dtype)} are not joined")
    return _dense(name, raw, shards)


def _refuse_overlap(entries: Mapping[str, Entry]) -> None:
    stored = [part for entry in entries.values() for part in entry.stored if part.info.nbytes]
    stored.sort(key=lambda entry: entry.place)
    for before, after in pairwise(stored):
        end = before.offset + before.info.nbytes
        if before.shard == after.shard and end > after.offset:
            raise CorruptFile(
                f"tensors {before.info.name[:200]!r} and {after.info.name[:200]!r} overlap: the first ends at "
                f"{end:,}, the second starts at {after.offset:,} of shard {after.shard}"
            )


def slice_key(name: bytes, extents: Sequence[Extent]) -> bytes:
    """Return the key of a slice of the variable `name`, in TensorFlow's ordered code (`EncodeTensorNameSlice`)."""
    escaped = re.sub(b"[\x00\xff]", lambda match: match[0] + bytes([255 - match[0][0]]), name)
    key = b"\x00" + escaped + b"\x00\x01" + (bytes([1, len(extents)]) if extents else b"\x00")
    for start, length in extents:
        for value in (start, -1 if length is None else length):
            magnitude = ~value if value < 0 else value
            size = max(1, -(-(magnitude.bit_length() + 1) // 7))  # one sign bit, 7 payload bits a byte
            body = value & (1 << 8 * size) - 1
            header = (1 << size) - 1 << 8 * size - size  # as many ones as bytes, flipped into the sign's bits
            key += (body ^ header).to_bytes(size, "big")
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
