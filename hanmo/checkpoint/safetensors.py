"""Safetensors files, read over a memory map and written as a stream.

    file = length of header, 8 bytes | header, JSON, padded with spaces | tensors' bytes, without gaps

Every claim of the header is checked before it is used. Knows no variable names.
The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hanmo.checkpoint.mapped import MappedFile
from hanmo.checkpoint.shards import group, write_sharded
from hanmo.checkpoint.source import STORAGE, Array, Source, TensorInfo, storage_bytes
from hanmo.checkpoint.staged import Item, describe, raw_chunks
from hanmo.errors import CheckpointError, CorruptFile
from hanmo.files import parse_json

__all__ = ["Safetensors", "write_safetensors"]

_DTYPES: Mapping[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the original library's limit
_MAX_RANK = 32
_ALIGN = 64


class Safetensors(Source):
    """One safetensors file that is open for reading.

    metadata: the strings under `__metadata__`.
    Raises MissingFile, and CorruptFile for a header that is inconsistent with itself or the bytes after it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            self._start, header = _read_header(self._file)
            self.metadata = _metadata(header.pop("__metadata__", {}))
            self._offsets, self.tensors = _check(header, self._file.size - self._start)
            self.in_file_order = list(self._offsets)
        except CheckpointError as error:
            raise type(error)(f"{path}: {error}; download or copy it again") from None

    def read(self, name: str) -> Array:
        info = self.tensors[name]
        return self._file.read(self._start + self._offsets[name], info.dtype, info.shape)

    def release(self, name: str) -> None:
        self._file.release(self._start + self._offsets[name], self.tensors[name].nbytes)


def write_safetensors(
    path: str | Path,
    tensors: Iterable[Item],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> Path:
    """Write tensors to `path`, or to several files beside it with `PATH.index.json`; return what to open.

    tensors: all are listed before the first byte is written, so give lazy chunks for what should not be held.
    metadata: strings for the header; Hugging Face wants {"format": "pt"}.
    max_shard_bytes: the most bytes of tensors in a file; None writes one file.
    Raises CheckpointError for a name given twice or a dtype that the format lacks.
    """
    words = dict(metadata or {})

    def write_one(made: Path, items: list[Item]) -> None:
        described = sorted(map(describe, items), key=lambda pair: -_itemsize(pair[0]))  # keeps all aligned
        header: dict[str, object] = {"__metadata__": words} if words else {}
        at = 0
        for info, _ in described:
            header[info.name] = {
                "dtype": _NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [at, at + info.nbytes],
            }
            at += info.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % _ALIGN)
        with made.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for info, chunks in described:
                for chunk in raw_chunks(info, chunks):
                    file.write(chunk.data)

    groups = group(tensors, max_shard_bytes, dtypes=_NAMES, kind="safetensors", reserved=("__metadata__",))
    return write_sharded(Path(path), groups, write_one)


def _itemsize(info: TensorInfo) -> int:
    return np.dtype(STORAGE[info.dtype]).itemsize


def _read_header(file: MappedFile) -> tuple[int, dict[str, object]]:
    if file.size < 8:
        raise CorruptFile(f"{file.size} bytes are too few for a safetensors file")
    length = int.from_bytes(file.raw(0, 8).tobytes(), "little")
    if not 2 <= length <= min(file.size - 8, _MAX_HEADER):
        raise CorruptFile(f"claims a header of {length:,} bytes; the file has {file.size:,}")
    text = file.raw(8, length).tobytes()
    if text[:1] != b"{":
        raise CorruptFile(f"header starts with {text[:8]!r}; expected '{{'")
    return 8 + length, parse_json(text, "the header", unique=True)


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise CorruptFile("__metadata__ is not an object of strings")
    return value


def _check(header: dict[str, object], size: int) -> tuple[dict[str, int], dict[str, TensorInfo]]:
    """Return (offset by name in file order, info by name sorted), each claim checked; size: bytes after the header."""
    infos = {}
    offsets = {}
    for name in sorted(header):
        infos[name], offsets[name] = _claim(name, header[name], size)
    at = 0
    order = sorted(offsets, key=lambda name: (offsets[name], infos[name].nbytes))
    for name in order:
        if offsets[name] != at:
            what = "overlaps the one before it" if offsets[name] < at else f"leaves a gap after byte {at:,}"
            raise CorruptFile(f"tensor {name!r} at byte {offsets[name]:,} {what}")
        at += infos[name].nbytes
    if at != size:
        raise CorruptFile(f"tensors end at byte {at:,} of {size:,} after the header")
    return {name: offsets[name] for name in order}, infos


def _claim(name: str, claim: object, size: int) -> tuple[TensorInfo, int]:
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(f"tensor {name!r} is described by {str(claim)[:200]}; expected dtype, shape, data_offsets")
    if not isinstance(claim["dtype"], str) or claim["dtype"] not in _DTYPES:
        raise CheckpointError(f"tensor {name!r} is of dtype {str(claim['dtype'])[:50]!r}; known are {list(_DTYPES)}")
    dtype, shape, place = _DTYPES[claim["dtype"]], claim["shape"], claim["data_offsets"]
    if not _sizes(shape) or len(shape) > _MAX_RANK or np.prod([n for n in shape if n], dtype=object) >= 1 << 59:
        raise CorruptFile(f"tensor {name!r} claims the shape {str(shape)[:200]}")
    if not _sizes(place) or len(place) != 2 or not place[0] <= place[1] <= size:
        raise CorruptFile(f"tensor {name!r} claims bytes {str(place)[:200]} of {size:,}")
    nbytes = storage_bytes(dtype, shape)
    if place[1] - place[0] != nbytes:
        raise CorruptFile(f"tensor {name!r} claims {place[1] - place[0]:,} bytes, but {dtype}{shape} takes {nbytes:,}")
    return TensorInfo(name, dtype, tuple(shape), nbytes), place[0]


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
