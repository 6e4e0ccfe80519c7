"""Tables and index messages put together by hand, without the writer under test, so that they may also be wrong."""

from __future__ import annotations

from pathlib import Path

import cramjam
from crc32c import crc32c

MAGIC = bytes.fromhex("57fb808b247547db")


def num(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def int_field(number: int, value: int) -> bytes:
    return num(number * 8) + num(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return num(number * 8 + 2) + num(len(value)) + value


def mask(crc: int) -> int:
    return ((crc >> 15) + (crc << 17) + 0xA282EAD8) % (1 << 32)


def header(shards: int = 1, order: int = 0, minimum: int = 0) -> tuple[bytes, bytes]:
    version = int_field(1, 1) + int_field(2, minimum)
    return b"", int_field(1, shards) + int_field(2, order) + bytes_field(3, version)


def shape_of(sizes: list[int]) -> bytes:
    return b"".join(bytes_field(2, int_field(1, size)) for size in sizes)


def slice_of(extents: list[tuple[int, int | None]]) -> bytes:
    out = b""
    for start, length in extents:
        out += bytes_field(1, int_field(1, start) + (b"" if length is None else int_field(2, length)))
    return out


def entry(
    *,
    dtype: int = 1,
    shape: tuple[int, ...] = (2, 3),
    shard: int = 0,
    offset: int = 0,
    size: int = 24,
    crc: int = 0,
    slices: tuple[bytes, ...] = (),
) -> bytes:
    numbers = int_field(3, shard) + int_field(4, offset) + int_field(5, size)
    check = num(6 * 8 + 5) + crc.to_bytes(4, "little")
    cut = b"".join(bytes_field(7, one) for one in slices)
    return int_field(1, dtype) + bytes_field(2, shape_of(list(shape))) + numbers + check + cut


def block(rows: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(num(0) + num(len(key)) + num(len(value)) + key + value for key, value in rows)
    return body + bytes(4) + (1).to_bytes(4, "little")


def seal(body: bytes, kind: int = 0) -> bytes:
    stored = body + bytes([kind])
    return stored + mask(crc32c(stored)).to_bytes(4, "little")


def table_of(bodies: list[bytes], bounds: list[bytes], kind: int = 0) -> bytes:
    """Join raw block bodies (packed already where kind is 1) to a table."""
    out, index = b"", []
    for body, bound in zip(bodies, bounds, strict=True):
        index.append((bound, num(len(out)) + num(len(body))))
        out += seal(body, kind)
    meta = block([])
    places = num(len(out)) + num(len(meta))
    out += seal(meta)
    top = block(index)
    places += num(len(out)) + num(len(top))
    return out + seal(top) + places.ljust(40, b"\0") + MAGIC


def table(*blocks: list[tuple[bytes, bytes]], snappy: bool = False) -> bytes:
    bodies = [block(rows) for rows in blocks]
    if snappy:
        bodies = [bytes(cramjam.snappy.compress_raw(body)) for body in bodies]
    return table_of(bodies, [rows[-1][0] for rows in blocks], int(snappy))


def write_index(prefix: Path, *rows: tuple[bytes, bytes], snappy: bool = False) -> Path:
    prefix.with_name(prefix.name + ".index").write_bytes(table(list(rows), snappy=snappy))
    return prefix


def write_data(prefix: Path, data: bytes, shard: int = 0, shards: int = 1) -> None:
    prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(data)
