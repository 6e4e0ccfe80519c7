"""The sorted table of keys and values that TensorFlow's `.index` files are (LevelDB's format), both ways.

    file    = data block … | metaindex block | index block | footer
    block   = entry … | restart offsets, 4 bytes each | their count, 4 bytes
    entry   = shared, unshared, length of value (varints) | unshared bytes of key | value
    trailer = type (0 plain, 1 Snappy) | masked crc32c of block and type; after every block
    footer  = handles (offset, size: varints) of metaindex and index, padded to 40 bytes | magic, 8 bytes

The index block maps a key not less than the last one of a data block to that block's handle. Knows nothing of
tensors. What is read is bounded by the size of the file, whatever the file claims: see `read_table`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

import cramjam
from crc32c import crc32c

from hanmo.checkpoint.tf.protobuf import read_varint, varint
from hanmo.errors import CheckpointError, CorruptFile

MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5
_PLAIN, _SNAPPY = 0, 1
_MIB = 1 << 20
_Handle = tuple[int, int]


def masked(crc: int) -> int:
    """Mask a crc32c as LevelDB stores it: rotated right by 15 and moved by a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) in the order of the keys, checking every checksum, bound and the order itself.

    A block takes at most 16 MiB + 2 × the file when unpacked, and all keys together no more than that.
    Raises CorruptFile for bytes that are not such a table.
    """
    if len(data) < _FOOTER:
        raise CorruptFile(f"{len(data)} bytes are too few for a table, which ends in a footer of {_FOOTER}")
    magic = int.from_bytes(data[-8:], "little")
    if magic != MAGIC:
        raise CorruptFile(f"ends in {magic:#018x}, not in a table's magic number {MAGIC:#018x}")
    footer = data[-_FOOTER:]
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    budget = 16 * _MIB + 2 * len(data)
    last = None
    for bound, value in _entries(_block(data, index)):
        handle, end = _handle(value, 0)
        if end != len(value):
            raise CorruptFile(f"block handle of {len(value)} bytes, of which only {end} are used")
        key = None
        for key, content in _entries(_block(data, handle)):
            if last is not None and key <= last:
                word = "twice" if key == last else f"after {last[:200]!r}: keys are not sorted"
                raise CorruptFile(f"key {key[:200]!r} comes {word}")
            budget -= len(key)
            if budget < 0:
                raise CorruptFile(f"keys unpack to more than {16 + 2 * len(data) / _MIB:.0f} MiB")
            last = key
            yield key, content
        if key is None:
            raise CorruptFile(f"data block at {handle[0]:,} is empty")
        if key > bound:
            raise CorruptFile(f"key {key[:200]!r} is past its block's bound {bound[:200]!r}")


def write_table(
    items: Iterable[tuple[bytes, bytes]], write: Callable[[bytes], object], *, block_size: int, restart: int = 16
) -> None:
    """Write sorted (key, value) pairs as a table of plain blocks.

    write: takes the bytes, in order.   block_size: a block is closed once it holds this many bytes.
    restart: entries between two keys that are stored in full.
    Raises CheckpointError if the keys are not sorted and different.
    """
    place = 0
    index = _Block(1)

    def put(block: _Block) -> bytes:
        """Write a block; return its handle."""
        nonlocal place
        data = block.finish()
        write(data + _trailer(data, _PLAIN))
        handle = varint(place) + varint(len(data))
        place += len(data) + _TRAILER
        return handle

    last = None
    block = _Block(restart)
    for key, value in items:
        if last is not None and key <= last:
            raise CheckpointError(f"key {key!r} is written after {last!r}; keys must be sorted and different")
        if last is not None and block.size >= block_size:
            index.add(_separator(last, key), put(block))
            block = _Block(restart)
        block.add(key, value)
        last = key
    if last is not None:
        index.add(_separator(last), put(block))
    footer = put(_Block(restart)) + put(index)
    write(footer.ljust(_FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little"))


def _separator(low: bytes, high: bytes | None = None) -> bytes:
    """Return LevelDB's short key that is at least `low`, and less than `high` if another key follows."""
    for at, byte in enumerate(low):
        if high is None and byte < 0xFF:
            return low[:at] + bytes([byte + 1])
        if high is not None and byte != high[at]:
            return low[:at] + bytes([byte + 1]) if byte + 1 < high[at] else low
    return low


class _Block:
    """A block that is being written; every `restart` entries a key is stored in full."""

    def __init__(self, restart: int) -> None:
        self._entries = bytearray()
        self._restarts = [0]
        self._restart, self._count, self._last = restart, 0, b""

    @property
    def size(self) -> int:
        return len(self._entries) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count % self._restart:
            while key[shared : shared + 1] == self._last[shared : shared + 1] != b"":
                shared += 1
        elif self._count:
            self._restarts.append(len(self._entries))
        self._entries += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self._count += 1
        self._last = key

    def finish(self) -> bytes:
        count = len(self._restarts)
        return bytes(self._entries) + struct.pack(f"<{count + 1}I", *self._restarts, count)


def _trailer(stored: bytes, kind: int) -> bytes:
    return bytes([kind]) + masked(crc32c(bytes([kind]), crc32c(stored))).to_bytes(4, "little")


def _handle(data: bytes, at: int) -> tuple[_Handle, int]:
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: _Handle) -> bytes:
    """Return the contents of a block, checked and unpacked."""
    offset, size = handle
    if offset + size + _TRAILER > len(data) - _FOOTER:
        raise CorruptFile(f"block of {size:,} bytes at {offset:,} reaches past the table's {len(data):,} bytes")
    stored = data[offset : offset + size]
    trailer = data[offset + size : offset + size + _TRAILER]
    if trailer != _trailer(stored, trailer[0]):
        raise CorruptFile(f"block at {offset:,} fails its checksum: the index is damaged")
    if trailer[0] == _PLAIN:
        return stored
    if trailer[0] != _SNAPPY:
        raise CorruptFile(f"block at {offset:,} is of type {trailer[0]}; known are 0 (plain) and 1 (Snappy)")
    claimed, _ = read_varint(stored, 0, bits=32)
    limit = min(22 * size + 64, 16 * _MIB + 2 * len(data))  # Snappy's densest element makes 64 bytes of 3
    if claimed > limit:
        raise CorruptFile(
            f"Snappy block at {offset:,} claims {claimed:,} bytes, more than {size:,} packed bytes may hold"
        )
    try:
        return bytes(cramjam.snappy.decompress_raw(stored))
    except cramjam.DecompressionError as error:
        raise CorruptFile(f"Snappy block at {offset:,} cannot be unpacked: {error}") from None


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else -1
    end = len(block) - 4 * (restarts + 1)
    if restarts < 0 or end < 0:
        raise CorruptFile(f"block of {len(block)} bytes claims {restarts:,} restart points")
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(block, at, bits=32)
        unshared, at = read_varint(block, at, bits=32)
        length, at = read_varint(block, at, bits=32)
        if shared > len(key) or unshared + length > end - at:
            raise CorruptFile(
                f"entry at {at} claims {shared:,} shared, {unshared:,} own and {length:,} value bytes; "
                f"the key before it has {len(key)}, {end - at:,} bytes are left"
            )
        key = key[:shared] + block[at : at + unshared]
        at += unshared + length
        yield key, block[at - length : at]
