r"""TensorFlow's tensor bundle, read: `PREFIX.index` lists the tensors, `PREFIX.data-00000-of-00001` … hold them.

    ""        -> BundleHeaderProto: shards, byte order, version
    name      -> BundleEntryProto: dtype, shape, shard, offset, size, crc32c, or the slices it is stored in
    \0 name … -> BundleEntryProto of one slice (see index.py)

The index alone is enough to list tensors; data files are mapped when first read. Everything the index claims is
checked against itself and the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from crc32c import crc32c

from hanmo.checkpoint.source import STORAGE, Array, MappedFile, Source
from hanmo.checkpoint.tf.index import Entry, read_index
from hanmo.checkpoint.tf.sstable import masked
from hanmo.cores import cores
from hanmo.errors import CheckpointError, CorruptFile

MIN_PART = 2 << 20  # bytes; below this, handing work to a thread costs more than it saves
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed: the highest bit is the coefficient of x**0
_MAX_THREADS = 4  # memory, not arithmetic, is the limit


def shard_path(prefix: Path, shard: int, shards: int) -> Path:
    """Return the path of one data file."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def expected_sizes(prefix: Path) -> dict[Path, int]:
    """Return each data file of a bundle and the bytes that the index expects it to have at least."""
    shards, entries = read_index(prefix.with_name(prefix.name + ".index"))
    sizes = {shard_path(prefix, shard, shards): 0 for shard in range(shards)}
    for entry in entries.values():
        for part in entry.stored:
            path = shard_path(prefix, part.shard, shards)
            sizes[path] = max(sizes[path], part.offset + part.info.nbytes)
    return sizes


class Bundle(Source):
    """A tensor bundle that is open for reading.

    path: the prefix, the file names without `.index` and `.data-…`.   Several threads may read at once.
    Raises MissingFile if there is no index and CorruptFile if it is damaged or contradicts itself.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        index = path.with_name(path.name + ".index")
        self._verify = verify
        self._shards, self._entries = read_index(index)
        self.tensors = {name: entry.info for name, entry in self._entries.items()}
        self._files: dict[int, MappedFile] = {}
        self._lock = Lock()
        self._threads = min(_MAX_THREADS, cores())
        self._pool = ThreadPoolExecutor(self._threads)
        self.in_file_order = sorted(self._entries, key=lambda name: self._entries[name].place)

    def read(self, name: str) -> Array:
        """Return one tensor; see `Source.read`.

        Raises CorruptFile if its bytes fail their checksum, naming it; CheckpointError for a dtype that holds
        no numbers.
        """
        entry = self._entries[name]
        if entry.info.dtype not in STORAGE:
            raise CheckpointError(
                f"tensor {name!r} of {self.path} is of dtype {entry.info.dtype}, which holds no numbers; leave it out"
            )
        if not entry.parts:
            return self._dense(entry)
        parts = [self._dense(part).reshape(part.info.shape or (1,)) for part in entry.parts]
        return np.concatenate(parts, entry.axis).reshape(entry.info.shape)

    def release(self, name: str) -> None:
        entry = self._entries[name]
        for part in entry.stored:
            if part.shard in self._files:
                self._files[part.shard].release(part.offset, part.info.nbytes)

    def close(self) -> None:
        self._files.clear()
        self._pool.shutdown()

    def _dense(self, entry: Entry) -> Array:
        file = self._file(entry.shard)
        stored = file.raw(entry.offset, entry.info.nbytes)
        if self._verify and (found := masked(threaded_crc32c(stored, self._pool, self._threads))) != entry.checksum:
            raise CorruptFile(
                f"tensor {entry.info.name!r} in {file.path} is damaged: checksum is {found:#010x}, the index says "
                f"{entry.checksum:#010x}; download the file again"
            )
        return file.read(entry.offset, entry.info.dtype, entry.info.shape)

    def _file(self, shard: int) -> MappedFile:
        """Map a data file when it is first needed, and check that it holds all its tensors."""
        with self._lock:
            if shard in self._files:
                return self._files[shard]
            file = MappedFile(shard_path(self.path, shard, self._shards))
            for part in (part for entry in self._entries.values() for part in entry.stored):
                if part.shard == shard and part.offset + part.info.nbytes > file.size:
                    raise CorruptFile(
                        f"{file.path} holds {file.size:,} bytes, but tensor {part.info.name!r} needs "
                        f"{part.info.nbytes:,} at {part.offset:,}: the file is cut short or belongs to "
                        "another index; download it again"
                    )
            self._files[shard] = file
            return file


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
