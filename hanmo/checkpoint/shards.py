"""Checkpoints of several files under one `*.index.json`, as Hugging Face lays them out.

Knows the index's "weight_map" and joins the files' readers to one. Knows nothing of the files' own format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

from hanmo.checkpoint.source import Array, Source
from hanmo.checkpoint.staged import Item, Staged, describe
from hanmo.errors import CheckpointError, CorruptFile, MissingFile
from hanmo.files import read_json

__all__ = ["Sharded", "group", "read_weight_map", "shard_name", "write_sharded"]

_MAX_INDEX = 64 << 20


class Sharded(Source):
    """All files of an index json as one.

    Raises MissingFile naming the file that is not there, and CorruptFile where index and files disagree.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], Source]) -> None:
        self.path = path
        weight_map = read_weight_map(path)
        files = sorted(set(weight_map.values()))
        for file in files:
            if not (path.parent / file).is_file():
                raise MissingFile(
                    f"{path.parent / file} is missing; {path.name} lists {len(files)} files: download it again"
                )
        self._parts = [open_file(path.parent / file) for file in files]
        self._owner: dict[str, Source] = {}
        for file, part in zip(files, self._parts, strict=True):
            for name in part.tensors:
                if weight_map.get(name) != file:
                    raise CorruptFile(
                        f"{path.parent / file} holds {name!r}, for which {path.name} names {weight_map.get(name)}"
                    )
                self._owner[name] = part
        for name, file in weight_map.items():
            if name not in self._owner:
                raise CorruptFile(f"{path} says that {name!r} is in {file}, which does not hold it")
        self.tensors = {name: self._owner[name].tensors[name] for name in sorted(self._owner)}
        self.in_file_order = [name for part in self._parts for name in part.in_file_order]

    def read(self, name: str) -> Array:
        return self._owner[name].read(name)

    def release(self, name: str) -> None:
        self._owner[name].release(name)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def group(
    items: Iterable[Item],
    max_shard_bytes: int | None,
    *,
    dtypes: Container[str],
    kind: str,
    reserved: Iterable[str] = (),
) -> list[list[Item]]:
    """Split tensors, in their order, into files of at most so many bytes (more if one tensor alone has more).

    dtypes: those that the format, which messages call `kind`, can hold.   reserved: names it keeps for itself.
    Raises CheckpointError for another dtype, a reserved name or one given twice.
    """
    groups: list[list[Item]] = [[]]
    seen = set(reserved)
    size = 0
    for item in items:
        info, chunks = describe(item)
        if info.name in seen:
            raise CheckpointError(f"tensor {info.name!r} is given twice, or has a name that {kind} keeps for itself")
        if info.dtype not in dtypes:
            raise CheckpointError(f"tensor {info.name!r} is of dtype {info.dtype}, which {kind} cannot hold")
        seen.add(info.name)
        if max_shard_bytes is not None and groups[-1] and size + info.nbytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append((info.name, (info, chunks)))
        size += info.nbytes
    return groups


def read_weight_map(path: Path) -> dict[str, str]:
    """Read which file beside the index json holds each tensor. Raises MissingFile, CorruptFile."""
    weight_map = read_json(path, unique=True, limit=_MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CorruptFile(f'{path} has no object "weight_map" that names the file of each tensor')
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or file in {"", ".."}
            or file != Path(file).name
            or set(file) & {"\\", "\0"}
            or len(file.encode()) > 255
        ):
            raise CorruptFile(f"{path} names {file!r} for {name!r}; expected a file name in the same folder")
    return weight_map


def shard_name(path: Path, shard: int, shards: int) -> Path:
    """Return `model-00001-of-00003.safetensors` for `model.safetensors`; shard counts from 0."""
    return path.with_name(f"{path.stem}-{shard + 1:05d}-of-{shards:05d}{path.suffix}")


def write_sharded(path: Path, groups: Sequence[list[Item]], write_one: Callable[[Path, list[Item]], None]) -> Path:
    """Write one file, or several and their index json last; return what to open them by."""
    with Staged() as staged:
        weight_map = {}
        for shard, items in enumerate(groups):
            final = path if len(groups) == 1 else shard_name(path, shard, len(groups))
            made = staged.new(final)
            write_one(made, items)
            staged.place(made, final)
            weight_map.update({name: final.name for name, _ in items})
        if len(groups) == 1:
            return path
        total = sum(describe(item)[0].nbytes for items in groups for item in items)
        index = path.with_name(path.name + ".index.json")
        made = staged.new(index)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        made.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        staged.place(made, index)
    return index
