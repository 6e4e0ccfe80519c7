"""Which families' names a checkpoint has, and which of them config.json says it is.

Knows tables of names and model_type. Measures nothing and reads no tensor.
"""

from collections.abc import Mapping
from typing import Any

from hanmo.checkpoint.shapes import bare
from hanmo.checkpoint.source import Source, TensorInfo
from hanmo.errors import CheckpointError, ConfigError
from hanmo.families import FAMILIES, Family, Names

__all__ = ["candidates", "choose", "named_by", "names_of"]

# BERT's names with relative or rotary positions and equal shapes: only their vocabularies tell them apart.
_BY_ROWS = {21128: "nezha", 12000: "roformer", 50000: "roformer"}


def names_of(family: Family, form: str) -> Names | None:
    """Pick a family's table of names for a format."""
    return family.tensorflow if form == "tensorflow" else family.huggingface


def candidates(source: Source, config: Mapping[str, Any] | None, family: str | None) -> list[tuple[str, str]]:
    """List the families, each with its format, whose names an open checkpoint has.

    config: the config.json beside it.   family: the one that is asked for.
    Raises CheckpointError if there is none, ConfigError if `family` or the model_type of `config` is not known, or the
    model_type is that of a family with other names.
    """
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"family is {family!r}; known are {', '.join(FAMILIES)}")
    kind = None if family is not None else (config or {}).get("model_type")
    if kind:
        _check_kind(kind)
    found = [
        (name, form)
        for name, candidate in FAMILIES.items()
        for form in ("tensorflow", "huggingface")
        if family in (None, name)
        if (names := names_of(candidate, form)) is not None and _fits(names, source.tensors, forced=name == family)
    ]
    if not found:
        known = f"{family!r}" if family else "any family that Hanmo knows"
        if any(name.endswith("/.ATTRIBUTES/VARIABLE_VALUE") for name in source.tensors):
            raise CheckpointError(
                f"{source.path} is what Keras's save_weights writes: it numbers layers and names no weights; save it "
                f"from the program that made it, by bert4keras's save_weights_as_checkpoint"
            )
        first = ", ".join(list(source.tensors)[:3]) or "no tensors at all"
        raise CheckpointError(f"{source.path} does not have the names of {known}; it holds {first} …")
    if kind and not any(kind in _kinds(name) for name, _ in found):
        _check_prefix(source, kind, *found[0])
    return found


def choose(
    found: list[tuple[str, str]], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Pick the likeliest of several candidates: what config.json says, or else the number of words."""
    for name, form in found:
        names = names_of(FAMILIES[name], form)
        if names is not None and named_by(names, name, config):
            return name, form
    if (config or {}).get("use_relative_position"):
        return next((pair for pair in found if pair[0] == "nezha"), found[0])
    names = names_of(FAMILIES[found[0][0]], found[0][1])
    assert names is not None
    shape = tensors[bare(names, names.sizes.token, tensors)].shape
    likely = _BY_ROWS.get(shape[0]) if shape else None
    return next((pair for pair in found if pair[0] == likely), found[0])


def named_by(names: Names, family: str, config: Mapping[str, Any] | None) -> bool:
    """Tell whether config.json names the family as its model_type."""
    kind = (config or {}).get("model_type")
    return kind is not None and kind in (names.model_type, family)


def _kinds(family: str) -> set[str]:
    """Give what a config.json may call a family as its model_type."""
    of = FAMILIES[family]
    return {family, of.writes_as, *([of.huggingface.model_type] if of.huggingface is not None else [])}


def _check_kind(kind: object) -> None:
    """Raise ConfigError for a model_type that no family has: its names may fit where its computation differs."""
    known = {each for family in FAMILIES for each in _kinds(family)}
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(
            f"model_type is {kind!r} in config.json, which Hanmo does not read; known are "
            f"{', '.join(sorted(known - {''}))}; if it computes exactly what one of them does, name that family"
        )


def _check_prefix(source: Source, kind: str, family: str, form: str) -> None:
    """Raise ConfigError if the names are those of the family that config.json says, but for what they begin with."""
    names = names_of(FAMILIES[family], form)
    assert names is not None
    bare_names = {name.removeprefix(names.prefix): None for name in source.tensors}
    for other, candidate in FAMILIES.items():
        table = names_of(candidate, form)
        if kind in _kinds(other) and table is not None and _fits(table, bare_names, forced=False):
            raise ConfigError(
                f"config.json says that model_type is {kind!r}, but the names in {source.path} begin with "
                f"{names.prefix!r}, as those of a {family} do; take its own config.json, or name the family"
            )


def _fits(names: Names, tensors: Mapping[str, object], *, forced: bool) -> bool:
    needed = (names.sizes.token, names.sizes.query, names.sizes.feed_forward, *names.marks)
    return all(bare(names, name, tensors) in tensors for name in needed) and (
        forced or not any(bare(names, name, tensors) in tensors for name in names.absent)
    )
