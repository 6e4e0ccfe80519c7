"""The index of a tensor bundle: which tensors there are, and where their bytes are.

Knows the messages of `tensor_bundle.proto` and checks them against each other. Opens the index file only; the data
files are checked when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

from hanmo.checkpoint.source import STORAGE, TensorInfo, storage_bytes
from hanmo.checkpoint.tf.protobuf import fields, signed64
from hanmo.checkpoint.tf.slices import Extent, partition_axis, slice_key
from hanmo.checkpoint.tf.sstable import read_table
from hanmo.errors import CheckpointError, CorruptFile, MissingFile
from hanmo.files import read_bytes

__all__ = ["DTYPES", "MAX_SHARDS", "Entry", "read_index"]

DTYPES: Mapping[int, str] = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16",
    17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
    24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 28: "float8_e5m2fnuz", 29: "int4", 30: "uint4",
}  # fmt: skip
"""TensorFlow's DataType -> our name. Those that are not in STORAGE can be listed but not read."""

MAX_SHARDS = 99_999  # the file names have five digits
_MAX_RANK = 32  # NumPy 1's limit


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
    def place(self) -> tuple[int, int]:
        """Shard and offset of its first byte."""
        first = self.parts[0] if self.parts else self
        return first.shard, first.offset


@dataclass(frozen=True, slots=True)
class _Raw:
    """A BundleEntryProto as in the table."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[tuple[Extent, ...], ...]


class _Budget:
    """Limit of the memory that a small hostile file may unpack to: about 40 MiB + 4 × the file."""

    def __init__(self, size: int) -> None:
        self._limit = self._left = (40 << 20) + 4 * size

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise CorruptFile(f"lists more than {self._limit:,} bytes of memory can hold for a file of its size")


def read_index(path: Path) -> tuple[int, dict[str, Entry]]:
    """Return (number of shards, entries by name, sorted). Takes at most about 64 MiB + 8 × the file.

    Raises MissingFile, or CorruptFile and CheckpointError that name the file and what is wrong.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing; a TensorFlow checkpoint cannot be read without its index") from None
    budget = _Budget(len(data))
    shards = 0
    whole: dict[str, _Raw] = {}
    partial: dict[bytes, _Raw] = {}
    try:
        for key, value in read_table(data):
            if not key:
                shards = _header(value)
                continue
            if not shards:
                raise CorruptFile("the header, under the empty key, is missing")
            budget.spend(700 + 4 * len(key))
            raw = _entry(value, budget)
            if key[:1] == b"\0":
                partial[key] = raw
            else:
                whole[_name(key)] = raw
        if not shards:
            raise CorruptFile("the table is empty, not even the header is there")
        entries = {name: _resolve(name, raw, partial, shards) for name, raw in whole.items()}
        if partial:
            raise CorruptFile(f"slice {next(iter(partial))[:200]!r} belongs to no tensor")
        _refuse_overlap(entries)
    except CheckpointError as error:
        advice = "; the index is damaged, download or copy it again" if isinstance(error, CorruptFile) else ""
        raise type(error)(f"{path}: {error}{advice}") from None
    return shards, entries


def _name(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise CorruptFile(f"tensor name {key[:200]!r} is not UTF-8") from None


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
    shards = order = minimum = 0
    for number, value in fields(message):
        if number == 1:
            shards = _number(value)
        elif number == 2:
            order = _number(value)
        elif number == 3:
            minimum = _numbers(value).get(2, 0)
    if not 1 <= shards <= MAX_SHARDS:
        raise CorruptFile(f"header claims {shards:,} shards; expected 1 to {MAX_SHARDS:,}")
    if order:
        raise CheckpointError("the checkpoint is big-endian; save it again on a little-endian machine")
    if minimum > 1:
        raise CheckpointError(f"the checkpoint needs a reader of version {minimum}; Hanmo knows version 1")
    return shards


def _entry(message: bytes, budget: _Budget) -> _Raw:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    slices = []
    for number, value in fields(message):
        if number in numbers:
            numbers[number] = _number(value)
        elif number == 2:
            shape = _shape(_message(value))
        elif number == 7:
            extents = _extents(_message(value))
            budget.spend(2_000 + 200 * len(extents))  # more than they take: they are slow to parse too
            slices.append(extents)
    budget.spend(40 * len(shape))
    return _Raw(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], tuple(slices))


def _shape(message: bytes) -> tuple[int, ...]:
    sizes: list[int] = []
    for number, value in fields(message):
        if number == 3 and value:
            raise CorruptFile("a tensor of unknown rank")
        if number != 2:
            continue
        size = _numbers(value).get(1, 0)
        if size < 0:
            raise CorruptFile(f"axis {len(sizes)} claims a size of {size:,}")
        sizes.append(size)
        if len(sizes) > _MAX_RANK:
            raise CorruptFile(f"a tensor of more than {_MAX_RANK} axes")
    return tuple(sizes)


def _extents(message: bytes) -> tuple[Extent, ...]:
    extents: list[Extent] = []
    for number, value in fields(message):
        if number != 1:
            continue
        amounts = _numbers(value)
        extents.append((amounts.get(1, 0), amounts.get(2)))
        if len(extents) > _MAX_RANK:
            raise CorruptFile(f"a slice of more than {_MAX_RANK} axes")
    return tuple(extents)


def _resolve(name: str, raw: _Raw, partial: dict[bytes, _Raw], shards: int) -> Entry:
    """Check one tensor's claims, and find and take out its slices."""
    try:
        if not raw.slices:
            return _dense(name, raw, shards)
        axis, order = partition_axis(raw.shape, raw.slices)
        parts = [_part(name, raw, raw.slices[i], partial, shards) for i in order]
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
    axes = prod(size for size in raw.shape if size)
    if axes * 16 >= 1 << 63:
        raise CorruptFile(f"claims the shape {list(raw.shape)}, more than any memory holds")
    if dtype in STORAGE and storage_bytes(dtype, raw.shape) != raw.size:
        raise CorruptFile(
            f"claims {raw.size:,} bytes, but {dtype}{list(raw.shape)} takes {storage_bytes(dtype, raw.shape):,}"
        )
    return Entry(TensorInfo(name, dtype, raw.shape, raw.size), raw.shard, raw.offset, raw.checksum & 0xFFFFFFFF)


def _part(name: str, whole: _Raw, extents: tuple[Extent, ...], partial: dict[bytes, _Raw], shards: int) -> Entry:
    raw = partial.pop(slice_key(name.encode(), extents), None)
    if raw is None:
        raise CorruptFile(f"its slice {list(extents)} is not in the index")
    shape = tuple(size if length is None else length for (_, length), size in zip(extents, whole.shape, strict=True))
    if (raw.dtype, raw.shape, raw.slices) != (whole.dtype, shape, ()):
        raise CorruptFile(
            f"its slice {list(extents)} is of dtype {raw.dtype} and shape {list(raw.shape)}; "
            f"expected {whole.dtype} and {list(shape)}"
        )
    if DTYPES.get(raw.dtype) not in STORAGE:
        raise CheckpointError(f"slices of dtype {DTYPES.get(raw.dtype, raw.dtype)} are not joined")
    return _dense(name, raw, shards)


def _refuse_overlap(entries: Mapping[str, Entry]) -> None:
    stored = [part for entry in entries.values() for part in (entry.parts or (entry,)) if part.info.nbytes]
    stored.sort(key=lambda entry: entry.place)
    for before, after in pairwise(stored):
        end = before.offset + before.info.nbytes
        if before.shard == after.shard and end > after.offset:
            raise CorruptFile(
                f"tensors {before.info.name[:200]!r} and {after.info.name[:200]!r} overlap: the first ends at "
                f"{end:,}, the second starts at {after.offset:,} of shard {after.shard}"
            )
