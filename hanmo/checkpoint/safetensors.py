"""Safetensors files, read over a memory map and written as a stream.

    file = length of header, 8 bytes | header, JSON, padded with spaces | tensors' bytes, without gaps

The library of the same name validates headers. Knows no variable names.
The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hanmo.checkpoint.source import Array, Item, MappedFile, Source, TensorInfo, check_shape, describe, raw_chunks
from hanmo.checkpoint.staged import Staged
from hanmo.errors import CheckpointError, CorruptFile
from hanmo.files import errors_as, open_file, parse_json

_DTYPES: Mapping[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}
_ALIGN = 64
_ADVICE = "; download or copy it again"


class Safetensors(Source):
    """One safetensors file that is open for reading.

    metadata: the strings under `__metadata__`.
    Raises MissingFile, and CorruptFile for a header that is inconsistent with itself or the bytes after it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        with errors_as(CorruptFile, f"{path} is no valid safetensors file", advice=_ADVICE), safe_open(path, "np"):
            pass
        self._start = 8 + int.from_bytes(self._file.raw(0, 8).tobytes(), "little")
        text = self._file.raw(8, self._start - 8).tobytes()
        header = parse_json(text, f"the header of {path}", unique=True, advice=_ADVICE)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.tensors = {}
        for name, claim in sorted(header.items()):
            dtype, shape, (start, end) = _DTYPES.get(claim["dtype"]), claim["shape"], claim["data_offsets"]
            if dtype is None:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is of dtype {claim['dtype']!r}; known are {list(_DTYPES)}"
                )
            check_shape(shape, f"{path}: tensor {name!r}", _ADVICE)
            self.tensors[name] = TensorInfo(name, dtype, tuple(shape), end - start)
        self.in_file_order = sorted(header, key=lambda name: header[name]["data_offsets"])
        self._offsets = {name: self._start + header[name]["data_offsets"][0] for name in header}

    def read(self, name: str) -> Array:
        info = self.tensors[name]
        return self._file.read(self._offsets[name], info.dtype, info.shape)

    def release(self, name: str) -> None:
        self._file.release(self._offsets[name], self.tensors[name].nbytes)


def is_safetensors(path: Path) -> bool:
    """Tell by its first bytes whether a file, whatever its name, is of this format."""
    with open_file(path) as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


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
    max_shard_bytes: the most bytes of tensors in a file, or one tensor alone that has more; None writes one file.
    Raises CheckpointError for a name given twice or a dtype that the format lacks.
    """
    path = Path(path)
    shards: list[list[tuple[TensorInfo, Any]]] = [[]]
    seen = {"__metadata__"}
    size = total = 0
    for item in tensors:
        info, chunks = describe(item)
        if info.name in seen:
            raise CheckpointError(
                f"tensor {info.name!r} is given twice, or has a name that safetensors keeps for itself"
            )
        if info.dtype not in _NAMES:
            raise CheckpointError(f"tensor {info.name!r} is of dtype {info.dtype}, which safetensors cannot hold")
        seen.add(info.name)
        if max_shard_bytes is not None and shards[-1] and size + info.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((info, chunks))
        size += info.nbytes
        total += info.nbytes
    with Staged() as staged:
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            name = path.name if len(shards) == 1 else f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
            made = staged.new(path.with_name(name))
            _write_one(made, shard, metadata)
            staged.place(made, path.with_name(name))
            weight_map.update({info.name: name for info, _ in shard})
        if len(shards) == 1:
            return path
        index = path.with_name(path.name + ".index.json")
        made = staged.new(index)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        made.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        staged.place(made, index)
    return index


def _write_one(path: Path, tensors: list[tuple[TensorInfo, Any]], metadata: Mapping[str, str] | None) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    tensors = sorted(tensors, key=lambda pair: -pair[0].storage.itemsize)  # keeps all aligned
    at = 0
    for info, _ in tensors:
        end = at + info.nbytes
        header[info.name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for info, chunks in tensors:
            for chunk in raw_chunks(info, chunks):
                file.write(chunk.data)
