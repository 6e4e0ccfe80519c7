"""Masked crc32c, the checksum of TensorFlow's files, over several threads where the bytes are many.

Knows the polynomial's arithmetic that joins the sums of two halves. Knows no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import lru_cache

from crc32c import crc32c

from hanmo.checkpoint.source import Array

__all__ = ["MIN_PART", "joined_crc32c", "masked", "threaded_crc32c"]

MIN_PART = 2 << 20  # bytes; below this, handing work to a thread costs more than it saves
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed: the highest bit is the coefficient of x**0


def masked(crc: int) -> int:
    """Mask a crc32c as LevelDB stores it: rotated right by 15 and moved by a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def threaded_crc32c(raw: Array, pool: Executor, threads: int) -> int:
    """Return the crc32c of a flat uint8 array; threads also read contiguous parts of a mapped file at once."""
    parts = max(1, min(threads, raw.nbytes // MIN_PART))
    size = max(1, -(-raw.nbytes // parts))
    views = [raw[at : at + size] for at in range(0, raw.nbytes, size)] or [raw]
    others = [pool.submit(crc32c, view.data) for view in views[1:]]
    sums = [crc32c(views[0].data), *(other.result() for other in others)]
    return joined_crc32c(sums, [view.nbytes for view in views])


def joined_crc32c(sums: Sequence[int], sizes: Sequence[int]) -> int:
    """Return the crc32c of bytes of which consecutive parts have these sums and sizes."""
    crc = sums[0]
    for part, size in zip(sums[1:], sizes[1:], strict=True):
        crc = _multiply(crc, _power(8 * size)) ^ part
    return crc


@lru_cache(maxsize=256)
def _power(exponent: int) -> int:
    """Return x**exponent modulo the polynomial: what appending so many zero bits multiplies a sum by."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        exponent >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    """Multiply two polynomials over GF(2) modulo the polynomial."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
