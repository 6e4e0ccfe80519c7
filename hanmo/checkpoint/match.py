"""Match an open checkpoint with a model: its configuration, and the rows of names that fill it.

Also reads the configuration of a model that is not there yet, from a hanmo.json or config.json alone. Makes no model
and reads no weights but repeated ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoint.names import check_repeats
from hanmo.checkpoint.open import GENERATION_CONFIG, read_config, read_own_config
from hanmo.checkpoint.recognise import Recognised, check_family, recognise, recognise_own, rename
from hanmo.checkpoint.shapes import bare
from hanmo.checkpoint.source import Source
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.families import FAMILIES, Row
from hanmo.files import errors_as, read_json
from hanmo.model import Model

# Settings of transformers that change which ids are written, and that Hanmo has not.
_UNKNOWN_RULES = ("forced_bos_token_id", "forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens")
_TOKENIZER_FIELDS = ("tokenizer_class", "task_specific_params", "prefix")


def plan(
    source: Source, *, config: str | Path | ModelConfig | None = None, family: str | None = None
) -> tuple[Recognised, list[Row]]:
    """Recognise an open checkpoint and return the rows that fill its model.

    Where the file holds a tensor twice and only one is used, both are compared.
    Raises ConfigError naming each field of config.json that does not fit, CheckpointError if nothing does or two
    tensors that should be equal are not.
    """
    if config is None:
        config = read_own_config(source)
    if isinstance(config, ModelConfig):
        if family not in (None, config.family):
            raise ConfigError(f"family is {family!r}, the configuration's is {config.family!r}; leave family out")
        if "token.weight" in source.tensors:
            return _by_own_names(source, config)
        # A ready configuration may leave out a stack that the file holds.
        found = recognise(source, family=config.family)
        stacks = {side: getattr(config, side) or getattr(found.config, side) for side in ("encoder", "decoder")}
        rows = found.names.rows(replace(config, **stacks))
        found.config, found.derived = config, False
    else:
        found = _by_config_json(source, config, family)
        rows = found.names.rows(found.config)
    rows = rename(rows, source.tensors, found.names.prefix)
    used = {row.theirs for row in rows}
    repeats = {name: bare(found.names, other, source.tensors) for name, other in found.names.repeats.items()}
    check_repeats(source, {name: other for name, other in repeats.items() if name not in used})
    return found, rows


def _by_own_names(source: Source, config: ModelConfig) -> tuple[Recognised, list[Row]]:
    found = recognise_own(source, config)
    if found.mismatches:
        raise ConfigError(
            f"{source.path}: {'; '.join(found.mismatches)}; give the configuration that it was saved with"
        )
    with torch.device("meta"):
        ours = dict(Model(config).named_parameters())
    return found, [Row((name,), name) for name in {**ours, **source.tensors}]


def _by_config_json(source: Source, config: str | Path | None, family: str | None) -> Recognised:
    folder = source.path.parent if config is None else Path(config).parent
    expected = "the config.json that belongs to the checkpoint"
    data = read_config(folder) if config is None else _read(Path(config), expected)
    found = recognise(source, config=data, family=family)
    beside = folder / GENERATION_CONFIG
    generation = read_json(beside, error=ConfigError) if beside.is_file() else {}
    found.config = replace(found.config, generation=generation_fields(data or {}, generation))
    if found.mismatches:
        raise ConfigError(
            f"{source.path}: {'; '.join(found.mismatches)}; correct config.json or take the one it came with"
        )
    if found.guesses:
        raise MissingFile(
            f"no config.json beside {source.path}, and its shapes do not tell {found.guesses[0]}; "
            f"put the one it came with there, or the one that 'hanmo inspect' prints"
        )
    return found


def generation_fields(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `ModelConfig.generation` keeps of config.json and of generation_config.json, which overrides it.

    Raises ConfigError for a rule about ids that Hanmo would not follow.
    """
    for name in _UNKNOWN_RULES:
        if value := generation.get(name, config.get(name)):
            raise ConfigError(
                f"{name} is {value!r}, a rule of transformers that Hanmo does not follow; remove it from "
                f"{GENERATION_CONFIG} and config.json if texts may be written without it"
            )
    kept = {key: value for key, value in config.items() if key.endswith("_token_id") or key in _TOKENIZER_FIELDS}
    return kept | {key: value for key, value in generation.items() if key.endswith("_token_id") and value is not None}


def _read(path: Path, expected: str) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFile(f"no configuration at {path}; give {expected}")
    return dict(read_json(path, error=ConfigError))


def config_of(path: Path, *, family: str | None = None, mask: str | None = None) -> ModelConfig:
    """Read a model's configuration from a hanmo.json, or from a config.json in any family's words.

    An encoder gets the head that predicts tokens and no other.
    Raises ConfigError if nothing tells the family, or it is no configuration.
    """
    check_family(family)
    data = _read(path, "a hanmo.json or config.json")
    if "encoder" in data or "decoder" in data:
        config = ModelConfig.read(path)
    else:
        kind = data.get("model_type")
        tables = [each.huggingface for each in ([FAMILIES[family]] if family else FAMILIES.values())]
        names = next((each for each in tables if each is not None and kind and each.model_type == kind), None)
        names = names or (FAMILIES[family].tensorflow if family else None)
        if names is None:
            raise ConfigError(
                f"{path} does not say which family it is of (model_type is {kind!r}); name one: {', '.join(FAMILIES)}"
            )
        with errors_as(ConfigError, f"{path} holds a value of a kind that cannot be right"):
            config = names.config(data)
    if config.decoder is None and config.output != "none":
        config = replace(config, pool="none", nsp=False, discriminator=False)
    return config if mask is None else config.with_mask(mask)
