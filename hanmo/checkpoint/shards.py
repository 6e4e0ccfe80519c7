"""Checkpoints of several files under one `*.index.json`, as Hugging Face lays them out.

Knows the index's "weight_map" and joins the files' readers to one. Knows nothing of the files' own format.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hanmo.checkpoint.source import Array, Source
from hanmo.errors import CorruptFile, MissingFile
from hanmo.files import read_json

__all__ = ["Sharded", "read_weight_map"]

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
