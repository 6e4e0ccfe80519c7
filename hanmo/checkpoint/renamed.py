"""Read checkpoints with another project's names, or whose names begin with the modules around the network.

A view of a `Source` under the names of a family's table (families/namings.py). Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hanmo.checkpoint.source import STORAGE, Array, Source, TensorInfo, storage_bytes
from hanmo.errors import CheckpointError, ConfigError
from hanmo.families import Names, tables
from hanmo.families.namings import NAMINGS, WRAPPERS, Naming

__all__ = ["HOW", "Renamed", "with_known_names"]

Shape = tuple[int, ...]
_WRAPPED = re.compile(rf"((?:{'|'.join(WRAPPERS)})[./])*")


def _joined(shapes: list[Shape]) -> Shape:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


HOW: dict[str, tuple[int, Callable[[list[Shape]], Shape], Callable[[list[Array]], Array]]] = {
    "same": (1, lambda s: s[0], lambda a: a[0]),
    "transpose": (1, lambda s: s[0][::-1], lambda a: a[0].T),
    "without_first": (1, lambda s: (s[0][0] - 1, *s[0][1:]), lambda a: a[0][1:]),
    "join": (3, _joined, np.concatenate),
    "join_transpose": (3, lambda s: _joined(s)[::-1], lambda a: np.concatenate(a).T),
    "product": (2, lambda s: (s[0][0], s[1][1]), lambda a: a[0] @ a[1]),
}
"""`Naming.how` → how many stored tensors it takes, their shapes → the shape, and the tensors → the tensor."""

_RANKS = {"transpose": 2, "without_first": 2, "join": 1, "join_transpose": 2, "product": 2}


class Renamed(Source):
    """An open checkpoint under other names.

    inner: the checkpoint as stored.   names: stored name → the name here.   naming: of the project, if it is one's.
    note: what a person should know.
    Raises CheckpointError where several tensors get one name, or cannot be joined to one.
    """

    def __init__(self, inner: Source, names: Mapping[str, str], naming: Naming | None, note: str) -> None:
        self.inner, self.path, self.naming, self.note = inner, inner.path, naming, note
        self._parts: dict[str, list[str]] = {}
        for stored, name in names.items():
            self._parts.setdefault(name, []).append(stored)
        self._how = {name: _how(naming, name) for name in self._parts}
        self.tensors = {name: self._info(name) for name in sorted(self._parts)}
        self.in_file_order = list(dict.fromkeys(names[stored] for stored in inner.in_file_order))

    def read(self, name: str) -> Array:
        parts = self._parts[name]
        made = HOW[self._how[name]][2]([self.inner.read(part) for part in parts])
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
        count, shape_of, _ = HOW[how]
        shapes, rank, dtype = [info.shape for info in infos], _RANKS.get(how), infos[0].dtype
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
            renamed = {name: _rename(naming, _unwrap(name, inside)) for name in names}
            note = f"the names are {naming.project}'s" + (f", behind {inside!r}" if inside else "")
            return Renamed(source, renamed, naming, note)
    for table in known:
        inside = _inside(source, _ends(table, table.prefix), table.prefix)
        if inside:
            note = f"the names begin with {inside!r}, as a part of another module"
            return Renamed(source, {name: _unwrap(name, inside) for name in names}, None, note)
    return source


def _ends(table: Names, prefix: str) -> set[str]:
    """Tell by which names a table is known, without a prefix."""
    return {name.removeprefix(prefix) for name in (table.sizes.token, table.sizes.query, *table.marks)}


def _inside(source: Source, ends: set[str], prefix: str = "") -> str | None:
    """Find the modules before names that end so; "" for none; None where there are no such names."""
    names = source.tensors
    first = next(iter(ends))
    found = []
    for name in names:
        before = name.removesuffix(first)
        if name.endswith(first) and all(before + end in names for end in ends):
            if _WRAPPED.fullmatch(before.removesuffix(prefix)):
                found.append(before)
    if len(found) > 1:
        raise CheckpointError(
            f"{source.path} holds {len(found)} networks, under {' and '.join(map(repr, found))}; save the one you want"
        )
    return found[0] if found else None


def _unwrap(name: str, inside: str) -> str:
    """Remove the modules that a name shares with the network's: "model.bert.", or "model." before a head."""
    return next(name.removeprefix(outer) for outer in _outers(inside) if name.startswith(outer))


def _outers(inside: str) -> Iterator[str]:
    yield inside
    for match in reversed(list(re.finditer(r"[./]", inside[:-1]))):
        yield inside[: match.end()]
    yield ""


def _rename(naming: Naming, name: str) -> str:
    for pattern, new in naming.renames:
        name = re.sub(pattern, new, name)
    return name


def _how(naming: Naming | None, name: str) -> str:
    patterns = {} if naming is None else naming.how
    return next((how for pattern, how in patterns.items() if re.match(pattern, name)), "same")
