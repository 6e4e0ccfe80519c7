"""Tell what a checkpoint is from its names and shapes alone; its config.json, if any, is checked against them.

Reads no tensor: the bare `.index` of a TensorFlow checkpoint will do.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError
from hanmo.families import FAMILIES, Family, Names
from hanmo.weights.source import Source

# Embeddings are padded to round numbers by some trainers; more rows than this are another vocabulary.
SPARE = 128

# Released files of one shape: (family, vocabulary rows, depth, width) → what they are called, SHA256 of the data file.
RELEASED = {
    ("gpt2_ml", 21130, 48, 1536): (
        "GPT2_ML 1.5B, 15 GB corpus, BERT vocabulary (model.ckpt-100000)",
        "4a6e5124df8db7ac2bdd902e6191b807a6983a7f5d09fb10ce011f9a073b183e",
    ),
    ("gpt2_ml", 8021, 48, 1536): (
        "GPT2_ML 1.5B, 30 GB corpus, CLUE vocabulary (model.ckpt-220000)",
        "e698cc97a7f5f706f84f58bb469d614e51d3c0ce5f9ab9bf77e01e3fcb41d482",
    ),
}

# BERT's names with relative or rotary positions and equal shapes: only their vocabularies tell them apart.
_BY_ROWS = {21128: "nezha", 12000: "roformer", 50000: "roformer"}

Sizes = dict[str, int]


@dataclass
class Recognised:
    """What lies in a checkpoint.

    family: the likeliest; candidates: all that fit.   format: "tensorflow", "huggingface" or "hanmo".
    config: what the file's own config.json says, or what its shapes do (derived=True).
    sizes: as measured: vocab, width, depth, feed_forward, and what else the shapes tell.
    parameters: numbers in the model's own tensors.   dtype: of most of them.   left: reason → how many other tensors.
    released: name of the released checkpoint of this shape.   notes: what a person should know.
    """

    family: str
    candidates: list[str]
    format: str
    config: ModelConfig
    derived: bool
    sizes: Sizes
    parameters: int
    dtype: str
    left: dict[str, int] = field(default_factory=dict)
    released: str | None = None
    sha256: str | None = None
    notes: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    @property
    def names(self) -> Names:
        """The table of names that the file follows."""
        names = names_of(FAMILIES[self.family], self.format)
        assert names is not None
        return names


def names_of(family: Family, form: str) -> Names | None:
    """Pick a family's table of names for a format."""
    return family.tensorflow if form == "tensorflow" else family.huggingface


def recognise(source: Source, *, config: Mapping[str, Any] | None = None, family: str | None = None) -> Recognised:
    """Recognise an open checkpoint in TensorFlow's or Hugging Face's names.

    config: the config.json beside it.   family: overrules what the names say.
    Raises CheckpointError if no family has these names, ConfigError if `config` is not a configuration at all.
    """
    tensors = source.tensors
    found = [
        (name, form)
        for name, candidate in FAMILIES.items()
        for form in ("tensorflow", "huggingface")
        if (names := names_of(candidate, form)) is not None and _fits(names, tensors, forced=name == family)
    ]
    if family is not None:
        if family not in FAMILIES:
            raise ConfigError(f"family is {family!r}; known are {', '.join(FAMILIES)}")
        found = [pair for pair in found if pair[0] == family]
    if not found:
        known = f"{family!r}" if family else "any family that Hanmo knows"
        first = ", ".join(list(tensors)[:3]) or "no tensors at all"
        raise CheckpointError(f"{source.path} does not have the names of {known}; it holds {first} …")
    name, form = _choose(found, tensors, config)
    names = names_of(FAMILIES[name], form)
    assert names is not None
    sizes = _measure(names, tensors)
    derived = config is None
    result = Recognised(
        family=name,
        candidates=[candidate for candidate, _ in found],
        format=form,
        config=with_heads(names.config(_derive(sizes, names.style) if config is None else config), names, tensors),
        derived=derived,
        sizes=sizes,
        parameters=0,
        dtype="",
    )
    _count(result, names, source)
    _compare(result, tensors)
    released = RELEASED.get((name, sizes["vocab"], sizes["depth"], sizes["width"]))
    if released is not None:
        result.released, result.sha256 = released
    return result


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read the config.json of a folder, under any of the names it goes by; None if there is none."""
    for name in ("config.json", "bert_config.json", "albert_config.json", "hparams.json", "mega.json"):
        path = folder / name
        if path.is_file():
            return read_json(path)
    others = sorted(folder.glob("*config*.json"))
    return read_json(others[0]) if len(others) == 1 else None


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; raises ConfigError saying where it breaks."""
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected a JSON object")
    return data


def with_heads(config: ModelConfig, names: Names, tensors: Mapping[str, object]) -> ModelConfig:
    """Switch off the heads whose tensors are not there."""
    lacks = {head for head, tensor in names.heads.items() if tensor not in tensors}
    changes: dict[str, Any] = {}
    if "mlm" in lacks:
        changes["output"] = "none"
    if "pool" in lacks:
        changes["pool"] = "none"
    if lacks & {"nsp", "pool"}:
        changes["nsp"] = False
    if "discriminator" in lacks:
        changes["discriminator"] = False
    return replace(config, **changes) if changes else config


def _bare(names: Names, name: str, tensors: Mapping[str, object]) -> str:
    if name not in tensors and names.prefix:
        return name.removeprefix(names.prefix)
    return name


def _fits(names: Names, tensors: Mapping[str, object], *, forced: bool) -> bool:
    needed = (names.sizes.token, names.sizes.query, names.sizes.feed_forward, *names.marks)
    return all(_bare(names, name, tensors) in tensors for name in needed) and (
        forced or not any(name in tensors for name in names.absent)
    )


def _choose(
    found: list[tuple[str, str]], tensors: Mapping[str, Any], config: Mapping[str, Any] | None
) -> tuple[str, str]:
    kind = (config or {}).get("model_type")
    for name, form in found:
        names = names_of(FAMILIES[name], form)
        if names is not None and kind is not None and kind in (names.model_type, name):
            return name, form
    if (config or {}).get("use_relative_position"):
        return next((pair for pair in found if pair[0] == "nezha"), found[0])
    names = names_of(FAMILIES[found[0][0]], found[0][1])
    assert names is not None
    rows = tensors[_bare(names, names.sizes.token, tensors)].shape[0]
    return next((pair for pair in found if pair[0] == _BY_ROWS.get(rows)), found[0])


def _measure(names: Names, tensors: Mapping[str, Any]) -> Sizes:
    def shape(name: str) -> tuple[int, ...]:
        info = tensors.get(_bare(names, name, tensors)) if name else None
        return tuple(n for i, n in enumerate(info.shape) if i or n != 1) if info else ()

    of = names.sizes
    token, query, inner = shape(of.token), shape(of.query), shape(of.feed_forward)
    if not (len(token) == len(query) == len(inner) == 2):
        raise CheckpointError(
            f"{of.token}, {of.query} or {of.feed_forward} is not a matrix; this is no {of.token} model"
        )
    if not of.columns:
        query, inner = query[::-1], inner[::-1]
    pattern = re.compile(
        "^"
        + re.sub(
            r"\\\{.*?\\\}", r"(\\d+)", re.escape(_bare(names, of.layer, {}) if _is_bare(names, tensors) else of.layer)
        )
    )
    numbers = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    sizes = {
        "vocab": token[0],
        "embedding_width": token[1],
        "width": query[0],
        "depth": len(numbers),
        "feed_forward": inner[1],
        "query": query[1],
    }
    if position := shape(of.position):
        sizes["positions"] = position[0]
    if segment := shape(of.segment):
        sizes["segments"] = segment[0]
    if heads := shape(of.heads):
        sizes["heads"] = heads[0]
    return sizes


def _is_bare(names: Names, tensors: Mapping[str, object]) -> bool:
    return names.sizes.token not in tensors


# How other configurations call what BERT's says.
_STYLES = {
    "gpt2": {
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    },
    "t5": {
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "attention_head_size": "d_kv",
        "num_attention_heads": "num_heads",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
    },
}


def _derive(sizes: Sizes, style: str) -> dict[str, Any]:
    """Write the config.json that the shapes call for; heads of 64 features and 12 shared layers are customs."""
    heads = sizes.get("heads") or max(1, sizes["query"] // 64)
    depth = sizes["depth"]
    data = {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["width"],
        "embedding_size": sizes["embedding_width"],
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "attention_head_size": sizes["query"] // heads,
        "intermediate_size": sizes["feed_forward"],
        "max_position_embeddings": sizes.get("positions", 512),
        "type_vocab_size": sizes.get("segments", 0),
    }
    return (
        data
        if style == "bert"
        else {_STYLES[style][key]: value for key, value in data.items() if key in _STYLES[style]}
    )


def _count(result: Recognised, names: Names, source: Source) -> None:
    left: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, info in source.tensors.items():
        reason = next((why for pattern, why in names.dropped.items() if re.match(pattern, name)), None)
        if reason is not None:
            left[reason] += 1
            continue
        count = 1
        for n in info.shape:
            count *= n
        result.parameters += count
        dtypes[info.dtype] += count
    result.left = dict(left)
    result.dtype = dtypes.most_common(1)[0][0] if dtypes else "none"


def _compare(result: Recognised, tensors: Mapping[str, object]) -> None:
    """Say what does not fit between config.json and the shapes, and what was only guessed."""
    sizes, stack = result.sizes, result.config.main
    if result.derived:
        if "heads" not in sizes:
            result.notes.append(f"heads: {stack.heads}, taken from the custom of 64 features a head")
        if stack.shared_layers:
            result.notes.append(f"depth: {stack.depth} in the file, shared; config.json must say how often it is run")
    pairs = [
        ("vocab_size", result.config.vocab, sizes["vocab"]),
        ("hidden_size", stack.width, sizes["width"]),
        ("embedding_size", stack.embedding_width, sizes["embedding_width"]),
        ("intermediate_size", stack.feed_forward, sizes["feed_forward"]),
        ("num_attention_heads × head size", stack.heads * stack.key_dim, sizes["query"]),
    ]
    if not stack.shared_layers:
        pairs.append(("num_hidden_layers", (result.config.encoder or stack).depth, sizes["depth"]))
    if "positions" in sizes and stack.positions is not None:
        pairs.append(("max_position_embeddings", stack.positions, sizes["positions"]))
    if "segments" in sizes:
        pairs.append(("type_vocab_size", stack.segments, sizes["segments"]))
    for key, says, holds in pairs:
        if says == holds:
            continue
        if key == "vocab_size" and 0 < holds - says <= SPARE:
            result.notes.append(f"the embedding has {holds:,} rows for {says:,} words: {holds - says} are spare")
            result.config = replace(result.config, vocab=holds)
        else:
            result.misfits.append(f"config.json says {key} is {says:,}; the checkpoint holds {holds:,}")
    if len(result.candidates) > 1:
        result.notes.append(f"the same names fit {' and '.join(result.candidates)}; name the family if it is another")
