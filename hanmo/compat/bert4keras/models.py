"""bert4keras.models: `build_transformer_model` and what it returns."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoint.load import fill
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.vocabulary_edit import Average, VocabularyEdit
from hanmo.compat.bert4keras import _saving, configs
from hanmo.compat.bert4keras._absent import absent
from hanmo.compat.bert4keras._model import KerasModel
from hanmo.compat.bert4keras._runners import QUANTIZED, open_quantized, warn_unquantized
from hanmo.compat.bert4keras.configs import Input, Settings, get_weights_dtype
from hanmo.compat.bert4keras.keras import keras
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.families import FAMILIES
from hanmo.files import read_json
from hanmo.model import Model

__all__ = ["Input", "KerasModel", "Transformer", "build_transformer_model", "keras"]

# Parameters that no checkpoint has and bert4keras initializes with zeros: those of conditional norms.
_FRESH = r"\.(condition_scale|condition_bias|hidden)\.weight$"


class Transformer:
    """What `build_transformer_model(…, return_keras_model=False)` returns: the model, and the two parts of a T5."""

    def __init__(self, model: KerasModel, encoder: KerasModel | None, decoder: KerasModel | None) -> None:
        self.model, self.encoder, self.decoder = model, encoder, decoder
        self.layers, self.inputs, self.outputs = model.layer_map, model.inputs, model.outputs

    def load_weights_from_checkpoint(self, checkpoint: str, mapping: None = None) -> None:
        """Load the weights of a TensorFlow checkpoint with the original's names; mapping must be None."""
        warn_unquantized(get_weights_dtype(), "the checkpoint was given after the model was built")
        _fill(self.model.network, checkpoint, None)

    def save_weights_as_checkpoint(self, filename: str, mapping: None = None, dtype: str | None = None) -> None:
        """Write the weights as a TensorFlow checkpoint with the original's names, in `dtype`; mapping must be None."""
        _saving.save_checkpoint(self.model.network, filename, dtype=dtype)


def build_transformer_model(
    config_path: str | None = None,
    checkpoint_path: str | None = None,
    model: str = "bert",
    application: str = "encoder",
    return_keras_model: bool = True,
    **kwargs: Any,
) -> Any:
    """Build a model as bert4keras 0.11.5 does, and load a checkpoint into it.

    config_path: a config.json, which the keyword arguments update.   checkpoint_path: the prefix of a TensorFlow
    checkpoint; None gives random weights.   model, application and the keyword arguments: as in bert4keras.
    Returns a KerasModel, or a Transformer that holds it.
    Raises ConfigError, Unsupported, MissingFile or CheckpointError.
    """
    if config_path is not None and not Path(config_path).is_file():
        raise MissingFile(f"no configuration at {config_path}; give the config.json that belongs to the checkpoint")
    data = (read_json(Path(config_path), error=ConfigError) if config_path is not None else {}) | kwargs
    config, settings = configs.read(data, model.lower(), application.lower())
    edit = _vocabulary_edit(data)
    if edit is not None:
        config = replace(config, vocab_size=edit.size(config.vocab_size))
    keras_model = _build(config, settings, checkpoint_path, edit)
    if return_keras_model:
        return keras_model
    if settings.part != "model" or not config.is_encoder_decoder:
        return Transformer(keras_model, None, None)
    return Transformer(keras_model, *(_part(keras_model, part) for part in ("encoder", "decoder")))


def _part(model: KerasModel, part: str) -> KerasModel:
    settings = Settings(model.settings.name, part, model.settings.lm, inputs=list(configs.T5_INPUTS[part]))
    return KerasModel(model.network, settings)


def _build(config: ModelConfig, settings: Settings, checkpoint: str | None, edit: VocabularyEdit | None) -> KerasModel:
    if checkpoint is None:
        return KerasModel(Model(config).initialize(), settings)
    with torch.device("meta"):
        network = Model(config)
    dtype = get_weights_dtype()
    if dtype in QUANTIZED:
        runner = open_quantized(config, settings, checkpoint, dtype, edited=edit is not None)
        if runner is not None:
            return KerasModel(network, settings, quantized=runner, fill=lambda: _fill(network, checkpoint, edit))
    _fill(network, checkpoint, edit)
    return KerasModel(network, settings)


def _fill(network: Model, checkpoint: str, edit: VocabularyEdit | None) -> None:
    names = FAMILIES[network.config.family].tensorflow
    assert names is not None
    weights = get_weights_dtype()
    dtype = None if weights is None or weights in QUANTIZED else getattr(torch, weights)
    # bert4keras looks up the names it knows and ignores the rest.
    dropped = {".*": "a name that bert4keras does not read"}
    with open_source(checkpoint) as source:
        fill(network, source, names.rows(network.config), dropped=dropped, dtype=dtype, edit=edit, fresh=_FRESH)


def _vocabulary_edit(data: dict[str, Any]) -> VocabularyEdit | None:
    keep: Sequence[int] | None = data.get("keep_tokens")
    compound = data.get("compound_tokens")
    if keep is None and compound is None:
        return None
    # As in bert4keras a list holds ids alone, a tuple ids and their weights.
    return VocabularyEdit(
        keep, [Average(*item[:2]) if isinstance(item, tuple) else Average(item) for item in compound or ()]
    )


def __getattr__(name: str) -> Any:
    """Stand in for the classes that built Keras graphs."""
    return absent("bert4keras.models", name)
