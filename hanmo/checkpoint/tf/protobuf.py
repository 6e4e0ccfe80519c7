"""Varints and protobuf's wire format, strict, for the few messages in a tensor bundle's index.

Knows no message by name. Refuses what TensorFlow would never write: over-long varints, lengths past the end,
groups, field number 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from hanmo.errors import CorruptFile

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def varint(value: int) -> bytes:
    """Encode a non-negative integer below 2**64."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int, *, bits: int = 64) -> tuple[int, int]:
    """Return (value, position after it). Raises CorruptFile if it is cut short or needs more than `bits`."""
    if at < len(data) and data[at] < 0x80:  # most are of one byte
        return data[at], at + 1
    value = shift = 0
    for position in range(at, min(at + (bits + 6) // 7, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> bits:
                break
            return value, position + 1
        shift += 7
    raise CorruptFile(f"varint at byte {at} of {len(data)} is cut short or longer than {bits} bits")


def signed64(value: int) -> int:
    """Read an unsigned 64-bit value as protobuf's int64 (two's complement)."""
    return value - (1 << 64) if value >> 63 else value


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a message in its order: an int for numbers (unsigned), bytes for the rest.

    Raises CorruptFile for anything that is not a complete, well-formed message.
    """
    at = 0
    while at < len(message):
        key, at = read_varint(message, at, bits=32)
        number, kind = key >> 3, key & 7
        if number == 0 or kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            raise CorruptFile(f"protobuf field {number} of wire type {kind} at byte {at} is not valid")
        if kind == _VARINT:
            value, at = read_varint(message, at)
            yield number, value
            continue
        size = _FIXED.get(kind, -1)
        if size < 0:
            size, at = read_varint(message, at)
        if size > len(message) - at:
            raise CorruptFile(f"protobuf field {number} claims {size:,} bytes, {len(message) - at:,} are left")
        chunk = message[at : at + size]
        at += size
        yield number, chunk if kind == _BYTES else int.from_bytes(chunk, "little")


def encode_int(number: int, value: int) -> bytes:
    """Encode an int32, int64 or enum field; 0 is left out, as proto3 does."""
    return varint(number << 3) + varint(value & (1 << 64) - 1) if value else b""


def encode_bytes(number: int, value: bytes) -> bytes:
    """Encode a string, bytes or message field, the empty one too."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def encode_fixed32(number: int, value: int) -> bytes:
    """Encode a fixed32 field; 0 is left out, as proto3 does."""
    return varint(number << 3 | _FIXED32) + value.to_bytes(4, "little") if value else b""
