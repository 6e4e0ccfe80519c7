"""Read the configuration of a model that is not there yet: a hanmo.json, or a config.json in any family's words.

Knows configurations and families. Knows no tensors; with a checkpoint, recognise.py tells more.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.families import FAMILIES, Names
from hanmo.files import errors_as, read_json

__all__ = ["config_of"]


def config_of(path: Path, *, family: str | None = None, mask: str | None = None) -> ModelConfig:
    """Read a model's configuration from a hanmo.json, or from a config.json in any family's words.

    An encoder gets the head that foretells tokens and no other.
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
