"""Tell what a checkpoint is from its names and shapes alone; its config.json, if any, is checked against them.

Reads no tensor and imports no torch: the bare `.index` of a TensorFlow checkpoint will do.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from hanmo.checkpoint.candidates import candidates, choose, named_by, names_of
from hanmo.checkpoint.renamed import Renamed
from hanmo.checkpoint.shapes import CUSTOM_HEAD, bare, derive, measure, translate
from hanmo.checkpoint.source import Source, TensorInfo
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import FAMILIES, Names, Row
from hanmo.files import errors_as

__all__ = [
    "RELEASED",
    "SPARE",
    "Recognised",
    "Released",
    "recognise",
    "recognise_own",
    "rename",
    "with_heads",
]

SPARE = 128
"""Embeddings are padded to round numbers by some trainers; more rows than this are another vocabulary."""


@dataclass
class Recognised:
    """What lies in a checkpoint.

    family: the likeliest; candidates: all that fit.   format: "tensorflow", "huggingface" or "hanmo", its names.
    config: what the file's own config.json says, or what its shapes do (derived=True).
    sizes: as measured: vocab, hidden_size, num_layers, feed_forward, and what else the shapes tell.
    parameters: numbers in the model's own tensors.   dtype: of most of them.   left: reason → how many other tensors.
    released: name of the released checkpoint of this shape; sha256: of its data file.
    notes: what a person should know.   mismatches: what config.json has wrong.   fixes: its keys → what they should be.
    own: how many tensors are the model's.   missing, unexpected: tensors that it lacks, and that nothing explains.
    """

    family: str
    candidates: list[str]
    format: str
    config: ModelConfig
    derived: bool
    sizes: dict[str, int]
    parameters: int
    dtype: str
    left: dict[str, int] = field(default_factory=dict)
    released: str | None = None
    sha256: str | None = None
    notes: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    fixes: dict[str, Any] = field(default_factory=dict)
    own: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def names(self) -> Names:
        """The table of names that the file follows."""
        names = names_of(FAMILIES[self.family], self.format)
        assert names is not None
        return names


def recognise(source: Source, *, config: Mapping[str, Any] | None = None, family: str | None = None) -> Recognised:
    """Recognise an open checkpoint in TensorFlow's or Hugging Face's names.

    config: the config.json beside it.   family: overrules what the names say.
    Raises CheckpointError if no family has these names, ConfigError if `config` is not a configuration at all, or its
    model_type is unknown or another family's.
    """
    tensors = source.tensors
    found = candidates(source, config, family)
    name, form = choose(found, tensors, config)
    names = names_of(FAMILIES[name], form)
    assert names is not None
    sizes = measure(names, tensors)
    released = RELEASED.get((name, sizes["vocab_size"], sizes["num_layers"], sizes["hidden_size"]))
    shown = derive(names, sizes, tensors)
    if released is not None:
        shown |= {key: released.config[key] for key in released.config if translate(names, key) == key}
    if config is not None and isinstance(source, Renamed):
        config = source.config(config, shown)
    by_shape = with_heads(names.config(shown), names, tensors)
    result = Recognised(
        family=name,
        candidates=[candidate for candidate, _ in found],
        format=form,
        config=by_shape if config is None else with_heads(_read(names, config), names, tensors),
        derived=config is None,
        sizes=sizes,
        parameters=0,
        dtype="",
    )
    if released is not None:
        result.released, result.sha256 = released.name, released.sha256
    if isinstance(source, Renamed):
        result.notes.append(source.note)
    _sort(result, rename(names.rows(by_shape), tensors, names.prefix), tensors)
    if result.derived:
        _say_guesses(result)
    else:
        _compare(result, shown)
    if len(result.candidates) > 1 and family is None and not named_by(names, name, config):
        result.notes.append(f"the same names fit {' and '.join(result.candidates)}; name the family if it is another")
    return result


def recognise_own(source: Source, config: ModelConfig) -> Recognised:
    """Recognise a checkpoint in Hanmo's own names by the configuration that was saved with it."""
    tensors = source.tensors
    token = tensors["token.weight"]
    stack = config.main
    side = "decoder" if config.decoder else "encoder"
    blocks = {match[1] for name in tensors if (match := re.match(rf"{side}\.blocks\.(\d+)\.", name))}
    sizes = {
        "vocab_size": token.shape[0],
        "hidden_size": stack.hidden_size,
        "num_layers": len(blocks),
        "feed_forward": stack.feed_forward,
        "embedding_size": token.shape[-1],
    }
    if stack.positions is not None:
        sizes["positions"] = stack.positions
    result = Recognised(config.family, [config.family], "hanmo", config, False, sizes, 0, "")
    _sort(result, [Row((name,), name) for name in tensors], tensors)
    num_layers = 1 if stack.shared_layers else stack.num_layers
    for key, says, holds in (
        ("vocab_size", config.vocab_size, sizes["vocab_size"]),
        ("embedding_size", stack.embedding_size, sizes["embedding_size"]),
        ("num_layers", num_layers, sizes["num_layers"]),
    ):
        if says != holds:
            result.mismatches.append(f"the configuration says {key} is {says:,}; the checkpoint holds {holds:,}")
    released = RELEASED.get((config.family, sizes["vocab_size"], sizes["num_layers"], sizes["hidden_size"]))
    if released is not None:
        result.released = released.name
    return result


def rename(rows: list[Row], names: Mapping[str, object], prefix: str) -> list[Row]:
    """Fit the rows to how a file spells its names: without the whole model's prefix, or gamma and beta for norms."""
    without = prefix != "" and not any(name.startswith(prefix) for name in names)
    old = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): name for name in names}

    def spelled(name: str) -> str:
        name = name.removeprefix(prefix) if without else name
        return str(old.get(name, name))

    return [Row(row.ours, spelled(row.theirs), row.how) for row in rows]


def with_heads(config: ModelConfig, names: Names, tensors: Mapping[str, object]) -> ModelConfig:
    """Switch off the heads whose tensors are not there."""
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


def _read(names: Names, config: Mapping[str, Any]) -> ModelConfig:
    with errors_as(ConfigError, "config.json holds a value of a kind that cannot be right"):
        return names.config(config)


def _sort(result: Recognised, rows: list[Row], tensors: Mapping[str, TensorInfo]) -> None:
    """Say of every tensor whether it is the model's, left for a known reason, or unexpected; and what is missing."""
    dropped = {} if result.format == "hanmo" else result.names.reasons
    repeats = {} if result.format == "hanmo" else result.names.repeats
    wanted = {row.theirs: row for row in rows}
    left: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, info in tensors.items():
        reason = next((why for pattern, why in dropped.items() if re.match(pattern, name)), None)
        if name in wanted:
            result.own += 1
            dtypes[info.dtype] += prod(info.shape)
        elif reason is not None or name in repeats:
            left[reason or f"the same tensor as {repeats[name]}"] += 1
        else:
            result.unexpected.append(name)
    result.left = dict(left)
    result.parameters = sum(dtypes.values())
    result.dtype = dtypes.most_common(1)[0][0] if dtypes else "none"
    # Heads may be left out; what stands in a block may not.
    result.missing = [name for name, row in wanted.items() if name not in tensors and ".blocks." in row.ours[0]]


def _say_guesses(result: Recognised) -> None:
    stack = result.config.main
    if "num_heads" not in result.sizes and result.released is None:
        result.notes.append(f"heads: {stack.num_heads}, taken from the custom of {CUSTOM_HEAD} features a head")
    if stack.shared_layers:
        result.notes.append(f"depth: {stack.num_layers} in the file, shared; config.json must say how often it is run")


def _compare(result: Recognised, shown: Mapping[str, Any]) -> None:
    """Say what does not fit between config.json and the shapes; shown: the config.json that the shapes call for."""
    sizes, stack = result.sizes, result.config.main
    encoder = result.config.encoder or stack
    pairs = [
        ("vocab_size", result.config.vocab_size, sizes["vocab_size"]),
        ("hidden_size", stack.hidden_size, sizes["hidden_size"]),
        ("embedding_size", stack.embedding_size, sizes["embedding_size"]),
        ("intermediate_size", stack.feed_forward, sizes["feed_forward"]),
    ]
    if not stack.shared_layers and result.family != "albert_unshared":
        pairs.append(("num_hidden_layers", encoder.num_layers, sizes["num_layers"]))
        if result.config.encoder and result.config.decoder and "num_decoder_layers" in sizes:
            pairs.append(("num_decoder_layers", stack.num_layers, sizes["num_decoder_layers"]))
    if "positions" in sizes and stack.positions is not None:
        pairs.append(("max_position_embeddings", stack.positions, sizes["positions"]))
    if "segments" in sizes:
        pairs.append(("type_vocab_size", stack.segments, sizes["segments"]))
    for key, says, holds in pairs:
        if says == holds:
            continue
        theirs = translate(result.names, key) or key
        result.fixes[theirs] = holds
        if key == "vocab_size" and 0 < holds - says <= SPARE:
            result.notes.append(f"the embedding has {holds:,} rows for {says:,} words: {holds - says} are spare")
            result.config = replace(result.config, vocab_size=holds)
        else:
            result.mismatches.append(f"config.json says {theirs} is {says:,}; the checkpoint holds {holds:,}")
    if result.names.sizes.segment and stack.segments and not stack.shared_segments and "segments" not in sizes:
        result.fixes["type_vocab_size"] = 0
        result.mismatches.append(
            f"config.json says type_vocab_size is {stack.segments}, but the checkpoint has no "
            f"{result.names.sizes.segment}: set it to 0, or shared_segment_embeddings to true"
        )
    if stack.num_heads * stack.key_dim != sizes["query"]:
        heads, of = (translate(result.names, key) for key in ("num_attention_heads", "attention_head_size"))
        result.fixes |= {key: shown[key] for key in (heads, of) if key in shown}
        result.mismatches.append(
            f"config.json says {heads} × head size is {stack.num_heads * stack.key_dim:,}; "
            f"the checkpoint holds {sizes['query']:,}"
        )


@dataclass(frozen=True)
class Released:
    """A published checkpoint: its name, the SHA256 of its data file, and what its config.json says beside sizes."""

    name: str
    sha256: str
    config: Mapping[str, Any]


_MEGA = {
    "initializer_range": 0.014142135623731,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}

# The sums are those that the README of imcaspar/gpt2-ml gives.
RELEASED = {
    ("gpt2_ml", 21130, 48, 1536): Released(
        "GPT2_ML 1.5B, 15 GB corpus, BERT vocabulary (model.ckpt-100000)",
        "4a6e5124df8db7ac2bdd902e6191b807a6983a7f5d09fb10ce011f9a073b183e",
        _MEGA,
    ),
    ("gpt2_ml", 8021, 48, 1536): Released(
        "GPT2_ML 1.5B, 30 GB corpus, CLUE vocabulary (model.ckpt-220000)",
        "e698cc97a7f5f706f84f58bb469d614e51d3c0ce5f9ab9bf77e01e3fcb41d482",
        _MEGA,
    ),
}
"""By (family, vocabulary rows, num_layers, hidden_size)."""
