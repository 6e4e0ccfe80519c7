"""Which families' names a checkpoint has, and which of them config.json says it is.

Knows tables of names and model_type. Measures nothing and reads no tensor.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hanmo.checkpoint.shapes import bare
from hanmo.checkpoint.source import Source, TensorInfo
from hanmo.errors import CheckpointError, ConfigError
from hanmo.families import FAMILIES, Names, tables

__all__ = ["Candidate", "candidates", "check_family", "choose"]

# BERT's names with relative or rotary positions and equal shapes: only their vocabularies tell them apart.
_BY_ROWS = {21128: "nezha", 12000: "roformer", 50000: "roformer"}


class Candidate(NamedTuple):
    """A family and format whose names a checkpoint has."""

    family: str
    format: str
    names: Names

    def is_named_by(self, config: Mapping[str, Any] | None) -> bool:
        """Tell whether config.json names the family as its model_type."""
        kind = (config or {}).get("model_type")
        return kind is not None and kind in (self.names.model_type, self.family)


def check_family(family: str | None) -> None:
    """Raise ConfigError for a family that is not known."""
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"family is {family!r}; known are {', '.join(FAMILIES)}")


def candidates(source: Source, config: Mapping[str, Any] | None, family: str | None) -> list[Candidate]:
    """List the families and formats whose names an open checkpoint has.

    config: the config.json beside it.   family: the one that is asked for.
    Raises CheckpointError if there is none, ConfigError if `family` or the model_type of `config` is not known, or the
    model_type is that of a family with other names.
    """
    check_family(family)
    kind = None if family is not None else (config or {}).get("model_type")
    if kind:
        _check_kind(kind)
    found = [
        Candidate(name, form, names)
        for name, form, names in tables()
        if family in (None, name) and _fits(names, source.tensors, forced=name == family)
    ]
    if not found:
        known = f"{family!r}" if family else "any family that Hanmo knows"
        if any(name.endswith("/.ATTRIBUTES/VARIABLE_VALUE") for name in source.tensors):
            raise CheckpointError(
                f"{source.path} was written by Keras's save_weights, which numbers layers and names no weights; save "
                f"it from the program that made it, by bert4keras's save_weights_as_checkpoint"
            )
        first = ", ".join(list(source.tensors)[:3]) or "no tensors at all"
        raise CheckpointError(f"{source.path} does not have the names of {known}; it holds {first} …")
    if kind and not any(kind in FAMILIES[each.family].model_types for each in found):
        _check_prefix(source, kind, found[0])
    return found


def choose(found: list[Candidate], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> Candidate:
    """Pick the likeliest of several candidates: what config.json says, or else by the size of the vocabulary."""
    for candidate in found:
        if candidate.is_named_by(config):
            return candidate
    likely: str | None = "nezha"
    if not (config or {}).get("use_relative_position"):
        names = found[0].names
        shape = tensors[bare(names, names.sizes.token, tensors)].shape
        likely = _BY_ROWS.get(shape[0]) if shape else None
    return next((candidate for candidate in found if candidate.family == likely), found[0])


def _check_kind(kind: object) -> None:
    """Raise ConfigError for a model_type that no family has: its names may fit where its computation differs."""
    known = {each for family in FAMILIES.values() for each in family.model_types}
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(
            f"model_type is {kind!r} in config.json, which Hanmo does not read; known are "
            f"{', '.join(sorted(known))}; if it computes exactly what one of them does, name that family"
        )


def _check_prefix(source: Source, kind: str, found: Candidate) -> None:
    """Raise ConfigError if names differ from those of config.json's family only in their prefix."""
    prefix = found.names.prefix
    bare_names = {name.removeprefix(prefix): None for name in source.tensors}
    for other, form, names in tables():
        if form == found.format and kind in FAMILIES[other].model_types and _fits(names, bare_names, forced=False):
            raise ConfigError(
                f"config.json says that model_type is {kind!r}, but the names in {source.path} begin with "
                f"{prefix!r}, as those of a {found.family} do; take its own config.json, or name the family"
            )


def _fits(names: Names, tensors: Mapping[str, object], *, forced: bool) -> bool:
    needed = (names.sizes.token, names.sizes.query, names.sizes.feed_forward, *names.marks)
    return all(bare(names, name, tensors) in tensors for name in needed) and (
        forced or not any(bare(names, name, tensors) in tensors for name in names.absent)
    )
