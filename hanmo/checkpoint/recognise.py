"""Tell what a checkpoint is from its names and shapes alone, and compare its config.json with them.

Reads no tensor and imports no torch: the bare `.index` of a TensorFlow checkpoint is enough.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from hanmo.checkpoint.renamed import Renamed
from hanmo.checkpoint.shapes import HEAD_DIM, TASK_HEAD, bare, derive, measure, translate
from hanmo.checkpoint.source import Source, TensorInfo
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError
from hanmo.families import FAMILIES, Names, Row, tables
from hanmo.files import errors_as

SPARE = 128
"""Embeddings are padded to round numbers by some trainers; more rows than this are another vocabulary."""

# BERT's names with relative or rotary positions and equal shapes: only their vocabularies tell them apart.
_BY_ROWS = {21128: "nezha", 12000: "roformer", 50000: "roformer"}


@dataclass
class Recognised:
    """What a checkpoint is.

    family: the likeliest; candidates: all that fit.   format: one of FORMATS or "hanmo", its names.
    config: what its config.json says, or what its shapes imply (derived=True).
    sizes: as measured: vocab_size, hidden_size, num_layers, feed_forward, and what else the shapes tell.
    parameters: numbers in the model's own tensors.   dtype: of most of them.   left: reason → how many other tensors.
    released: name of the released checkpoint of this shape; sha256: of its data file.
    notes: what a person should know.   guesses: sizes that no shape tells, as notes.
    mismatches: what config.json has wrong.   fixes: its keys → what they should be.
    own: how many tensors are the model's.   missing, unexpected: tensors that it lacks, and that nothing explains.
    """

    family: str
    candidates: list[str]
    format: str
    config: ModelConfig
    derived: bool
    sizes: dict[str, int]
    parameters: int = 0
    dtype: str = "none"
    left: dict[str, int] = field(default_factory=dict)
    released: str | None = None
    sha256: str | None = None
    notes: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    fixes: dict[str, Any] = field(default_factory=dict)
    own: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def names(self) -> Names:
        """The table of names that the file follows; none for a file in Hanmo's own."""
        names = FAMILIES[self.family].names(self.format)
        assert names is not None
        return names

    @property
    def dropped(self) -> dict[str, str]:
        """Regular expression of names that the model does not need → why."""
        return {re.escape(TASK_HEAD): "the head of a task"} if self.format == "hanmo" else self.names.reasons


def recognise(source: Source, *, config: Mapping[str, Any] | None = None, family: str | None = None) -> Recognised:
    """Recognise an open checkpoint in TensorFlow's or Hugging Face's names.

    config: the config.json beside it.   family: overrules what the names say.
    Raises CheckpointError if no family has these names, ConfigError if `config` is not a configuration at all, or its
    model_type is unknown or another family's.
    """
    tensors = source.tensors
    found = _candidates(source, config or {}, family)
    kind = (config or {}).get("model_type")
    named = [candidate for candidate in found if kind and kind in (candidate[0], candidate[2].model_type)]
    rows = measure(found[0][2], tensors)["vocab_size"]
    likely = "nezha" if (config or {}).get("use_relative_position") else _BY_ROWS.get(rows)
    chosen, form, names = (named or [each for each in found if each[0] == likely] or found)[0]
    sizes = measure(names, tensors)
    released = RELEASED.get((chosen, sizes["vocab_size"], sizes["num_layers"], sizes["hidden_size"]))
    shown = derive(names, sizes, tensors)
    if released is not None:
        shown |= _MEGA
    if config is not None and isinstance(source, Renamed):
        config = source.config(config, shown)
    by_shape = with_heads(names.config(shown), names, tensors)
    with errors_as(ConfigError, "config.json holds a value of a kind that cannot be right"):
        told = by_shape if config is None else with_heads(names.config(config), names, tensors)
    result = Recognised(chosen, [name for name, _, _ in found], form, told, derived=config is None, sizes=sizes)
    if released is not None:
        result.released, result.sha256 = released.name, released.sha256
    if isinstance(source, Renamed):
        result.notes.append(source.note)
    _sort(result, rename(names.rows(by_shape), tensors, names.prefix), tensors)
    if config is not None:
        _compare(result, shown)
    elif "num_heads" not in sizes and released is None:
        result.guesses.append(f"heads: {told.main.num_heads}, assuming the usual {HEAD_DIM} features a head")
    if config is None and told.main.shared_layers:
        result.guesses.append(
            f"depth: {told.main.num_layers} in the file, shared; config.json must say how often it is run"
        )
    result.notes += result.guesses
    if len(found) > 1 and family is None and not named:
        families = " and ".join(result.candidates)
        result.notes.append(f"the same names fit {families}; name the family if it is another")
    return result


def recognise_own(source: Source, config: ModelConfig) -> Recognised:
    """Recognise a checkpoint in Hanmo's own names by the configuration that was saved with it."""
    tensors = source.tensors
    shape = tensors["token.weight"].shape
    if len(shape) != 2:
        raise CheckpointError(f"token.weight in {source.path} is of the shape {list(shape)}; expected a matrix")
    stack = config.main
    side = "decoder" if config.decoder else "encoder"
    blocks = {match[1] for name in tensors if (match := re.match(rf"{side}\.blocks\.(\d+)\.", name))}
    num_layers = 1 if stack.shared_layers else stack.num_layers
    sizes = {"vocab_size": shape[0], "embedding_size": shape[1], "num_layers": len(blocks)}
    told = {"vocab_size": config.vocab_size, "embedding_size": stack.embedding_size, "num_layers": num_layers}
    result = Recognised(config.family, [config.family], "hanmo", config, derived=False, sizes=sizes)
    result.mismatches = [
        f"the configuration says {key} is {told[key]:,}; the checkpoint holds {held:,}"
        for key, held in sizes.items()
        if told[key] != held
    ]
    _sort(result, [Row((name,), name) for name in tensors if not name.startswith(TASK_HEAD)], tensors)
    released = RELEASED.get((config.family, shape[0], len(blocks), stack.hidden_size))
    result.released = None if released is None else released.name
    return result


def check_family(family: str | None) -> None:
    """Raise ConfigError for a family that is not known."""
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"family is {family!r}; known are {', '.join(FAMILIES)}")


def rename(rows: Sequence[Row], names: Mapping[str, object], prefix: str) -> list[Row]:
    """Fit the rows to how a file spells its names: without the prefix, or with gamma and beta for norms."""
    without = prefix != "" and not any(name.startswith(prefix) for name in names)
    old = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): name for name in names}

    def spelled(name: str) -> str:
        name = name.removeprefix(prefix) if without else name
        return old.get(name, name)

    return [Row(row.ours, spelled(row.theirs), row.how) for row in rows]


def with_heads(config: ModelConfig, names: Names, tensors: Mapping[str, object]) -> ModelConfig:
    """Switch off the heads whose tensors are missing."""
    lacks = {head for head, tensor in names.heads.items() if bare(names, tensor, tensors) not in tensors}
    changes: dict[str, Any] = {}
    if lacks & {"mlm", "decoder"}:
        changes["output"] = "none"
    if "decoder" in lacks:
        changes["decoder"] = None
    if "untied" in lacks:
        changes["tied"] = True
    if "pool" in lacks:
        changes["pool"] = "none"
    if lacks & {"nsp", "pool"}:
        changes["nsp"] = False
    if "discriminator" in lacks:
        changes["discriminator"] = False
    return replace(config, **changes) if changes else config


_Candidate = tuple[str, str, Names]
"""A family, a format of it, and its names."""


def _candidates(source: Source, config: Mapping[str, Any], family: str | None) -> list[_Candidate]:
    """List the families and formats whose names an open checkpoint has, of `family` alone if it is given."""
    check_family(family)
    tensors = source.tensors
    kind = None if family is not None else config.get("model_type")
    known = {each for every in FAMILIES.values() for each in every.model_types}
    if kind and (not isinstance(kind, str) or kind not in known):  # names may fit where the computation differs
        raise ConfigError(
            f"model_type is {kind!r} in config.json, which Hanmo does not read; known are "
            f"{', '.join(sorted(known))}; if it computes exactly what one of them does, name that family"
        )
    found = [each for each in tables() if family in (None, each[0]) and _fits(each[2], tensors, each[0] == family)]
    if not found:
        if any(name.endswith("/.ATTRIBUTES/VARIABLE_VALUE") for name in tensors):
            raise CheckpointError(
                f"{source.path} was written by Keras's save_weights, which numbers layers and names no weights; save "
                f"it from the program that made it, by bert4keras's save_weights_as_checkpoint"
            )
        expected = f"{family!r}" if family else "any family that Hanmo knows"
        first = ", ".join(list(tensors)[:3]) or "no tensors at all"
        raise CheckpointError(f"{source.path} does not have the names of {expected}; it holds {first} …")
    if kind and not any(kind in FAMILIES[name].model_types for name, _, _ in found):
        other, form, names = found[0]
        without = {name.removeprefix(names.prefix): None for name in tensors}
        alike = (table for name, kept, table in tables() if kept == form and kind in FAMILIES[name].model_types)
        if any(_fits(table, without) for table in alike):
            raise ConfigError(
                f"config.json says that model_type is {kind!r}, but the names in {source.path} begin with "
                f"{names.prefix!r}, as those of a {other} do; take its own config.json, or name the family"
            )
    return found


def _fits(names: Names, tensors: Mapping[str, object], forced: bool = False) -> bool:
    """Tell whether tensors have a table's names; forced: though they have some that the family has not."""
    needed = (names.sizes.token, names.sizes.query, names.sizes.feed_forward, *names.marks)
    return all(bare(names, name, tensors) in tensors for name in needed) and (
        forced or not any(bare(names, name, tensors) in tensors for name in names.absent)
    )


def _sort(result: Recognised, rows: Sequence[Row], tensors: Mapping[str, TensorInfo]) -> None:
    """Sort tensors into the model's own, those left for a known reason, unexpected and missing ones."""
    repeats = {} if result.format == "hanmo" else result.names.repeats
    wanted = {row.theirs: row for row in rows}
    left: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, info in tensors.items():
        reason = next((why for pattern, why in result.dropped.items() if re.match(pattern, name)), None)
        if name in wanted:
            result.own += 1
            dtypes[info.dtype] += prod(info.shape)
        elif reason is not None or name in repeats:
            left[reason or f"the same tensor as {repeats[name]}"] += 1
        else:
            result.unexpected.append(name)
    result.left = dict(left)
    result.parameters = sum(dtypes.values())
    if dtypes:
        result.dtype = dtypes.most_common(1)[0][0]
    # Heads may be left out; what is in a block may not.
    result.missing = [name for name, row in wanted.items() if name not in tensors and ".blocks." in row.ours[0]]


def _compare(result: Recognised, shown: Mapping[str, Any]) -> None:
    """List what does not fit between config.json and the shapes; shown: the config.json that the shapes imply."""
    config, sizes, stack, names = result.config, result.sizes, result.config.main, result.names
    # Key of config.json → what it says, and the measured size that it should equal.
    pairs: dict[str, tuple[int | None, str]] = {
        "vocab_size": (config.vocab_size, "vocab_size"),
        "hidden_size": (stack.hidden_size, "hidden_size"),
        "embedding_size": (stack.embedding_size, "embedding_size"),
        "intermediate_size": (stack.feed_forward, "feed_forward"),
        "max_position_embeddings": (stack.positions, "positions"),
        "type_vocab_size": (stack.segments, "segments"),
    }
    if not stack.shared_layers and result.family != "albert_unshared":
        pairs["num_hidden_layers"] = ((config.encoder or stack).num_layers, "num_layers")
        if config.is_encoder_decoder:
            pairs["num_decoder_layers"] = (stack.num_layers, "num_decoder_layers")
    for key, (value, size) in pairs.items():
        holds = sizes.get(size, value)
        if value is None or holds is None or value == holds:
            continue
        theirs = translate(names, key) or key
        result.fixes[theirs] = holds
        if key == "vocab_size" and 0 < holds - value <= SPARE:
            result.notes.append(f"the embedding has {holds:,} rows for {value:,} words: {holds - value} are spare")
            result.config = replace(config, vocab_size=holds)
        else:
            result.mismatches.append(f"config.json says {theirs} is {value:,}; the checkpoint holds {holds:,}")
    if names.sizes.segment and stack.segments and not stack.shared_segments and "segments" not in sizes:
        result.fixes["type_vocab_size"] = 0
        result.mismatches.append(
            f"config.json says type_vocab_size is {stack.segments}, but the checkpoint has no "
            f"{names.sizes.segment}: set it to 0, or shared_segment_embeddings to true"
        )
    if stack.num_heads * stack.key_dim != sizes["query"]:
        heads, of = (translate(names, key) for key in ("num_attention_heads", "attention_head_size"))
        result.fixes |= {key: shown[key] for key in (heads, of) if key in shown}
        result.mismatches.append(
            f"config.json says {heads} × head size is {stack.num_heads * stack.key_dim:,}; "
            f"the checkpoint holds {sizes['query']:,}"
        )


@dataclass(frozen=True)
class Released:
    """A published checkpoint: its name, and the SHA256 of its data file as the README of imcaspar/gpt2-ml gives it."""

    name: str
    sha256: str


# By (family, vocabulary rows, num_layers, hidden_size).
RELEASED = {
    ("gpt2_ml", 21130, 48, 1536): Released(
        "GPT2_ML 1.5B, 15 GB corpus, BERT vocabulary (model.ckpt-100000)",
        "4a6e5124df8db7ac2bdd902e6191b807a6983a7f5d09fb10ce011f9a073b183e",
    ),
    ("gpt2_ml", 8021, 48, 1536): Released(
        "GPT2_ML 1.5B, 30 GB corpus, CLUE vocabulary (model.ckpt-220000)",
        "e698cc97a7f5f706f84f58bb469d614e51d3c0ce5f9ab9bf77e01e3fcb41d482",
    ),
}
_MEGA = {"initializer_range": 0.014142135623731, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
"""What their config.json says beside sizes."""
