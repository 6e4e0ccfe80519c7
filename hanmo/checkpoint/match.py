"""Plan how an open checkpoint fills a model: the configuration, and the rows of names.

Also the configuration of a model that is not there yet, from a hanmo.json or config.json alone. Joins recognition
with what lies beside the checkpoint; makes no model and reads no weights but repeated ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoint.names import check_repeats
from hanmo.checkpoint.open import GENERATION_CONFIG, OWN_CONFIG, read_config
from hanmo.checkpoint.recognise import Recognised, recognise, recognise_own, rename
from hanmo.checkpoint.shapes import bare
from hanmo.checkpoint.source import Source
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.families import FAMILIES, Names, Row
from hanmo.files import errors_as, read_json
from hanmo.model import Model

__all__ = ["config_of", "generation_fields", "plan"]

# Settings of transformers that change which ids are written, and that Hanmo has not.
_UNKNOWN_RULES = ("forced_bos_token_id", "forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens")
_TOKENIZER_FIELDS = ("tokenizer_class", "task_specific_params", "prefix")


def plan(
    source: Source, *, config: str | Path | ModelConfig | None = None, family: str | None = None
) -> tuple[Recognised, list[Row]]:
    """Recognise an open checkpoint and give the rows that fill its model.

    What the file holds twice is compared, where only one of them is used.
    Raises ConfigError naming each field of config.json that does not fit, CheckpointError if nothing does or two
    tensors that should be equal are not.
    """
    found, rows = _recognised(source, config, family)
    if found.format != "hanmo":
        wanted = {row.theirs for row in rows}
        repeats = {name: bare(found.names, other, source.tensors) for name, other in found.names.repeats.items()}
        check_repeats(source, {name: other for name, other in repeats.items() if name not in wanted})
    return found, rows


def generation_fields(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Take from config.json and generation_config.json what `ModelConfig.generation` keeps; the latter goes first.

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


def _recognised(
    source: Source, config: str | Path | ModelConfig | None, family: str | None
) -> tuple[Recognised, list[Row]]:
    folder = source.path.parent
    own = folder / OWN_CONFIG
    if config is None and own.is_file():
        config = ModelConfig.read(own)
    if isinstance(config, ModelConfig):
        if family not in (None, config.family):
            raise ConfigError(f"family is {family!r}, the configuration's is {config.family!r}; leave family out")
        return _by(source, config)
    data = read_config(folder) if config is None else _read(Path(config))
    found = recognise(source, config=data, family=family)
    beside = (folder if config is None else Path(config).parent) / GENERATION_CONFIG
    said = generation_fields(data or {}, read_json(beside, error=ConfigError) if beside.is_file() else {})
    found.config = replace(found.config, generation=said)
    if found.mismatches:
        raise ConfigError(
            f"{source.path}: " + "; ".join(found.mismatches) + "; mend config.json or take the one it came with"
        )
    if found.derived and any(note.startswith(("heads", "depth")) for note in found.notes):
        raise MissingFile(
            f"no config.json beside {source.path}, and its shapes do not tell {found.notes[0]}; "
            f"put the one it came with there, or the one that 'hanmo inspect' prints"
        )
    names = found.names
    return found, rename(names.rows(found.config), source.tensors, names.prefix)


def _by(source: Source, config: ModelConfig) -> tuple[Recognised, list[Row]]:
    """Plan by a ready configuration, in whichever names the file has; it may leave out a stack that the file holds."""
    if "token.weight" in source.tensors:
        found = recognise_own(source, config)
        if found.mismatches:
            raise ConfigError(
                f"{source.path}: {'; '.join(found.mismatches)}; give the configuration that it was saved with"
            )
        with torch.device("meta"):
            ours = dict(Model(config).named_parameters())
        return found, [Row((name,), name) for name in {**ours, **source.tensors}]
    found = recognise(source, family=config.family)
    stacks = {side: getattr(config, side) or getattr(found.config, side) for side in ("encoder", "decoder")}
    rows = rename(found.names.rows(replace(config, **stacks)), source.tensors, found.names.prefix)
    found.config, found.derived = config, False
    return found, rows


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFile(f"no configuration at {path}; give the config.json that belongs to the checkpoint")
    return dict(read_json(path, error=ConfigError))


def config_of(path: Path, *, family: str | None = None, mask: str | None = None) -> ModelConfig:
    """Read a model's configuration from a hanmo.json, or from a config.json in any family's words.

    An encoder gets the head that predicts tokens and no other.
    Raises ConfigError if nothing tells the family, or the configuration is none.
    """
    if not path.is_file():
        raise MissingFile(f"no configuration at {path}; give a hanmo.json or config.json")
    data = read_json(path, error=ConfigError)
    if "encoder" in data or "decoder" in data:
        config = ModelConfig.read(path)
    else:
        with errors_as(ConfigError, f"{path} holds a value of a kind that cannot be right"):
            config = _names_for(path, data, family).config(data)
    if config.decoder is None and config.output != "none":
        config = replace(config, pool="none", nsp=False, discriminator=False)
    if mask is not None:
        side = "decoder" if config.decoder else "encoder"
        config = replace(config, **{side: replace(config.main, mask=mask)})  # type: ignore[arg-type]
    return config


def _names_for(path: Path, data: dict[str, Any], family: str | None) -> Names:
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"family is {family!r}; known are {', '.join(FAMILIES)}")
    chosen = [FAMILIES[family]] if family else list(FAMILIES.values())
    kind = data.get("model_type")
    for candidate in chosen:
        if kind and candidate.huggingface is not None and candidate.huggingface.model_type == kind:
            return candidate.huggingface
    if family is None or chosen[0].tensorflow is None:
        raise ConfigError(
            f"{path} does not say which family it is of (model_type is {kind!r}); name one: {', '.join(FAMILIES)}"
        )
    return chosen[0].tensorflow
