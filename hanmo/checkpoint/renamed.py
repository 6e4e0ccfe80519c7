"""Read checkpoints with another project's names, or whose names begin with the modules around the network.

A view of a `Source` under the names of a family's table (families/namings.py). Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hanmo.checkpoint.source import STORAGE, Array, Source, TensorInfo, storage_bytes
from hanmo.errors import CheckpointError, ConfigError
from hanmo.families import Names, tables
from hanmo.families.namings import NAMINGS, WRAPPERS, Naming

Shape = tuple[int, ...]
_WRAPPED = re.compile(rf"((?:{'|'.join(WRAPPERS)})[./])*")


def _joined(shapes: list[Shape]) -> Shape:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


HOW: dict[str, tuple[int, int, Callable[[list[Shape]], Shape], Callable[[list[Array]], Array]]] = {
    "same": (1, 0, lambda s: s[0], lambda a: a[0]),
    "transpose": (1, 2, lambda s: s[0][::-1], lambda a: a[0].T),
    "without_first": (1, 2, lambda s: (s[0][0] - 1, *s[0][1:]), lambda a: a[0][1:]),
    "join": (3, 1, _joined, np.concatenate),
    "join_transpose": (3, 2, lambda s: _joined(s)[::-1], lambda a: np.concatenate(a).T),
    "product": (2, 2, lambda s: (s[0][0], s[1][1]), lambda a: a[0] @ a[1]),
}
"""`Naming.how` → how many stored tensors it takes, their rank (0: any), shapes → shape, and tensors → tensor."""


class Renamed(Source):
    """An open checkpoint under other names.

    inner: the checkpoint as stored.   inside: the modules before its names, "model." or "".
    naming: of the project, if the names are one's.   note: what a person should know.
    Raises CheckpointError where several tensors get one name, or cannot be joined to one.
    """

    def __init__(self, inner: Source, inside: str, naming: Naming | None) -> None:
        self.inner, self.path, self.naming = inner, inner.path, naming
        self.note = f"the names begin with {inside!r}, as a part of another module"
        if naming is not None:
            self.note = f"the names are {naming.project}'s" + (f", behind {inside!r}" if inside else "")
        outers = [inside[: match.end()] for match in re.finditer(r"[./]", inside)][::-1]
        names: dict[str, str] = {}
        self._parts: dict[str, list[str]] = {}
        for stored in inner.in_file_order:
            # "model.bert." is removed, or "model." before a head
            name = next((stored.removeprefix(outer) for outer in outers if stored.startswith(outer)), stored)
            for pattern, new in () if naming is None else naming.renames:
                name = re.sub(pattern, new, name)
            names[stored] = name
        for stored in inner.tensors:
            self._parts.setdefault(names[stored], []).append(stored)
        patterns = {} if naming is None else naming.how
        self._how = {
            name: next((how for pattern, how in patterns.items() if re.match(pattern, name)), "same")
            for name in self._parts
        }
        self.tensors = {name: self._info(name) for name in sorted(self._parts)}
        self.in_file_order = list(dict.fromkeys(names.values()))

    def read(self, name: str) -> Array:
        parts = self._parts[name]
        made = HOW[self._how[name]][3]([self.inner.read(part) for part in parts])
        if len(parts) > 1:
            self.release(name)
        return made

    def release(self, name: str) -> None:
        for part in self._parts[name]:
            self.inner.release(part)

    def close(self) -> None:
        self.inner.close()

    def config(self, data: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
        """Translate config.json into the family's words; shown: the one that the shapes call for.

        Raises ConfigError for a network that only shares the names.
        """
        naming = self.naming
        if naming is None:
            return dict(data)
        for key, value in naming.config_fixed.items():
            if data.get(key, value) != value:
                raise ConfigError(f"{key} is {data[key]!r} in config.json; Hanmo reads {naming.project} with {value!r}")
        told = {key: value for key, value in data.items() if key not in naming.config_ignored}
        if not any(key in data for key in list(naming.config_keys)[:1]):
            return told
        guessed = {key: value for key, value in shown.items() if key != "attention_head_size"}
        return guessed | {new: data[old] for old, news in naming.config_keys.items() if old in data for new in news}

    def _info(self, name: str) -> TensorInfo:
        parts, how = self._parts[name], self._how[name]
        infos = [self.inner.tensors[part] for part in parts]
        count, rank, shape_of, _ = HOW[how]
        shapes, dtype = [info.shape for info in infos], infos[0].dtype
        if len(parts) != count:
            raise CheckpointError(
                f"{self.path} holds {' and '.join(parts)}, which would be {name}; expected {count} such tensor(s)"
            )
        if how == "same":
            return TensorInfo(name, dtype, shapes[0], infos[0].nbytes)
        alike = len({shape[1:] for shape in shapes}) == 1 if how != "product" else shapes[0][1:] == shapes[1][:1]
        ranks = {len(shape) for shape in shapes} == {rank} and 0 not in shapes[0]
        kinds = {info.dtype for info in infos} == {dtype} and dtype in STORAGE
        if not (ranks and alike and kinds) or (how == "product" and STORAGE[dtype] != dtype):
            told = ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in infos)
            raise CheckpointError(f"{self.path} holds {told}; they cannot make {name}")
        shape = shape_of(shapes)
        return TensorInfo(name, dtype, shape, storage_bytes(dtype, shape))


def with_known_names(source: Source) -> Source:
    """Return the source, or a view of it under a family's names if it has another project's.

    Raises CheckpointError where it holds two networks, or as `Renamed` does.
    """
    names = source.tensors
    known = [table for _, _, table in tables()]
    if "token.weight" in names or any(_ends(table, "") <= names.keys() for table in known):
        return source
    for naming in NAMINGS:
        if (inside := _inside(source, set(naming.marks))) is not None:
            return Renamed(source, inside, naming)
    for table in known:
        if inside := _inside(source, _ends(table, table.prefix), table.prefix):
            return Renamed(source, inside, None)
    return source


def _ends(table: Names, prefix: str) -> set[str]:
    """Tell by which names a table is known, without a prefix."""
    return {name.removeprefix(prefix) for name in (table.sizes.token, table.sizes.query, *table.marks)}


def _inside(source: Source, ends: set[str], prefix: str = "") -> str | None:
    """Find the modules before names that end so; "" for none; None where there are no such names."""
    names = source.tensors
    first = next(iter(ends))
    starts = [name.removesuffix(first) for name in names if name.endswith(first)]
    found = [
        start
        for start in starts
        if all(start + end in names for end in ends) and _WRAPPED.fullmatch(start.removesuffix(prefix))
    ]
    if len(found) > 1:
        raise CheckpointError(
            f"{source.path} holds {len(found)} networks, under {' and '.join(map(repr, found))}; save the one you want"
        )
    return found[0] if found else None
