"""TensorFlow's tensor bundle, written as today's `tf.train.Saver` writes it: the same bytes for the same tensors.

Knows the index's messages and the order of writing: data files first, the index last. The reader is bundle.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

from crc32c import crc32c

from hanmo.checkpoint.source import STORAGE, Item, describe, raw_chunks
from hanmo.checkpoint.staged import Staged
from hanmo.checkpoint.tf.bundle import shard_path
from hanmo.checkpoint.tf.index import DTYPES, MAX_SHARDS
from hanmo.checkpoint.tf.protobuf import encode_bytes, encode_fixed32, encode_int
from hanmo.checkpoint.tf.sstable import masked, write_table
from hanmo.errors import CheckpointError

_NUMBERS = {name: number for number, name in DTYPES.items()}
_MAX_NAME = 60_000


def write_bundle(
    prefix: str | Path,
    tensors: Iterable[Item],
    *,
    max_shard_bytes: int | None = None,
    block_size: int = 262_144,
) -> Path:
    """Write tensors as `PREFIX.index` and `PREFIX.data-…`; return the prefix.

    tensors: written in their order and one by one; the names need no order.   max_shard_bytes: start another
    data file once one holds so many bytes; None writes one.   block_size: bytes of a block of the index.
    Nothing appears under its final name before everything is written; the index appears last.
    Raises CheckpointError for names or dtypes that a bundle cannot hold.
    """
    prefix = Path(prefix)
    entries: dict[bytes, bytes] = {}
    with Staged() as staged:
        made = [staged.new(shard_path(prefix, 0, 1))]
        file: IO[bytes] = made[0].open("wb")
        try:
            for item in tensors:
                if max_shard_bytes is not None and file.tell() >= max_shard_bytes:
                    file.close()
                    made.append(staged.new(shard_path(prefix, len(made), len(made) + 1)))
                    file = made[-1].open("wb")
                key, entry = _write_tensor(file, item, len(made) - 1)
                if key in entries:
                    raise CheckpointError(f"tensor {item[0]!r} is given twice")
                entries[key] = entry
        finally:
            file.close()
        if len(made) > MAX_SHARDS:
            raise CheckpointError(f"{len(made):,} shards; a bundle has at most {MAX_SHARDS:,}: raise max_shard_bytes")
        for shard, path in enumerate(made):
            staged.place(path, shard_path(prefix, shard, len(made)))
        index = prefix.with_name(prefix.name + ".index")
        made_index = staged.new(index)
        entries[b""] = encode_int(1, len(made)) + encode_bytes(3, encode_int(1, 1))
        with made_index.open("wb") as file:
            write_table(sorted(entries.items()), file.write, block_size=block_size)
        staged.place(made_index, index)
    return prefix


def _write_tensor(file: IO[bytes], item: Item, shard: int) -> tuple[bytes, bytes]:
    """Write a tensor to a data file; return its key and entry in the index."""
    info, chunks = describe(item)
    key = info.name.encode()
    if not 0 < len(key) <= _MAX_NAME or key[:1] == b"\0":
        raise CheckpointError(
            f"tensor name {info.name[:200]!r} of {len(key):,} bytes cannot be used in a bundle; it needs 1 to "
            f"{_MAX_NAME:,} bytes, the first not zero"
        )
    if info.dtype not in STORAGE or info.dtype not in _NUMBERS:
        raise CheckpointError(f"tensor {info.name!r} is of dtype {info.dtype}, which a bundle cannot hold")
    file.write(b"\0" * (-file.tell() % info.storage.alignment))  # so that a reader can map it
    offset = file.tell()
    crc = 0
    for chunk in raw_chunks(info, chunks):
        crc = crc32c(chunk.data, crc)
        file.write(chunk.data)
    shape = b"".join(encode_bytes(2, encode_int(1, size)) for size in info.shape)
    return key, (
        encode_int(1, _NUMBERS[info.dtype])
        + encode_bytes(2, shape)
        + encode_int(3, shard)
        + encode_int(4, offset)
        + encode_int(5, info.nbytes)
        + encode_fixed32(6, masked(crc))
    )
