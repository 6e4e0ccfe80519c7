"""Tensors of strings as a bundle stores them: lengths (varints), their checksum, then the strings' bytes.

Knows this one layout, both ways. The checksum of the whole runs over the lengths as fixed numbers, not varints.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from crc32c import crc32c

from hanmo.checkpoint.source import Array
from hanmo.checkpoint.tf.checksum import masked
from hanmo.checkpoint.tf.protobuf import read_varint, varint
from hanmo.errors import CorruptFile

__all__ = ["decode_strings", "encode_strings"]


def encode_strings(strings: Iterable[bytes]) -> tuple[bytes, int]:
    """Return (stored bytes, masked crc32c)."""
    strings = list(strings)
    sums = _lengths_crc([len(text) for text in strings])
    check = masked(sums).to_bytes(4, "little")
    body = b"".join(strings)
    return b"".join(varint(len(text)) for text in strings) + check + body, masked(crc32c(body, crc32c(check, sums)))


def decode_strings(stored: bytes, shape: tuple[int, ...], checksum: int | None) -> Array:
    """Return the strings as an array of dtype object that holds bytes.

    checksum: the masked crc32c to expect; None checks the lengths' own only.
    Raises CorruptFile if the bytes are not such a tensor.
    """
    count = int(np.prod(shape, dtype=object))
    if count > len(stored):
        raise CorruptFile(f"{count:,} strings cannot stand in {len(stored):,} bytes")
    lengths, at = [], 0
    for _ in range(count):
        length, at = read_varint(stored, at)
        lengths.append(length)
    sums = _lengths_crc(lengths)
    check, body = stored[at : at + 4], stored[at + 4 :]
    if masked(sums).to_bytes(4, "little") != check or sum(lengths) != len(body):
        raise CorruptFile(f"lengths of {count:,} strings do not fit their checksum or their {len(body):,} bytes")
    if checksum is not None and masked(crc32c(body, crc32c(check, sums))) != checksum:
        raise CorruptFile("bytes do not fit their checksum")
    out = np.empty(count, object)
    at = 0
    for i, length in enumerate(lengths):
        out[i] = body[at : at + length]
        at += length
    return out.reshape(shape)


def _lengths_crc(lengths: list[int]) -> int:
    return crc32c(b"".join(length.to_bytes(4 if length < 1 << 32 else 8, "little") for length in lengths))
