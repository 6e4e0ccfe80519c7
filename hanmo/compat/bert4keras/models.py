"""bert4keras.models: `build_transformer_model` and what it returns."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoint.load import fill
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.vocabulary_edit import Average, VocabularyEdit
from hanmo.compat.bert4keras import _weights, configs
from hanmo.compat.bert4keras._absent import absent
from hanmo.compat.bert4keras._model import KerasModel
from hanmo.compat.bert4keras._runners import QUANTIZED, open_quantized, warn_unquantized
from hanmo.compat.bert4keras.configs import Input, Settings, get_weights_dtype
from hanmo.compat.bert4keras.keras import keras
from hanmo.errors import ConfigError, MissingFile, Unsupported
from hanmo.families import FAMILIES
from hanmo.files import read_json
from hanmo.model import Model

__all__ = ["Input", "KerasModel", "Transformer", "build_transformer_model", "keras"]

# Parameters that no checkpoint has and bert4keras initializes with zeros: those of conditional norms.
_FRESH = r"\.(condition_scale|condition_bias|hidden)\.weight$"


class Transformer:
    """What `build_transformer_model(…, return_keras_model=False)` returns: the model, and the two parts of a T5."""

    def __init__(
        self,
        model: KerasModel,
        encoder: KerasModel | None,
        decoder: KerasModel | None,
        edit: VocabularyEdit | None = None,
    ) -> None:
        self.model, self.encoder, self.decoder, self.edit = model, encoder, decoder, edit
        self.layers, self.inputs, self.outputs = model.layer_map, model.inputs, model.outputs

    def load_weights_from_checkpoint(self, checkpoint: str, mapping: Any = None) -> None:
        """Load a TensorFlow checkpoint with the original's names; raises Unsupported for a mapping."""
        refuse_mapping(mapping)
        warn_unquantized(get_weights_dtype(), "the checkpoint was given after the model was built")
        fill_network(self.model.network, checkpoint, self.edit)

    def save_weights_as_checkpoint(self, filename: str, mapping: Any = None, dtype: str | None = None) -> None:
        """Write a TensorFlow checkpoint with the original's names; raises Unsupported for a mapping."""
        refuse_mapping(mapping)
        _weights.save_checkpoint(self.model.network, filename, dtype)


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
    keep, compound, edit = data.get("keep_tokens"), data.get("compound_tokens"), None
    if keep is not None or compound is not None:
        # As in bert4keras a list holds ids alone, a tuple ids and their weights.
        averages = [Average(*each[:2]) if isinstance(each, tuple) else Average(each) for each in compound or ()]
        edit = VocabularyEdit(keep, averages)
        config = replace(config, vocab_size=edit.size(config.vocab_size))
    if checkpoint_path is None:
        made = KerasModel(Model(config).initialize(), settings)
    else:
        with torch.device("meta"):
            network = Model(config)
        load, dtype, runner = partial(fill_network, network, checkpoint_path, edit), get_weights_dtype(), None
        if dtype is not None and dtype in QUANTIZED:
            runner = open_quantized(config, settings, checkpoint_path, dtype, edited=edit is not None)
        if runner is None:
            load()
        made = KerasModel(network, settings, quantized=runner, fill=load if runner else None)
    if return_keras_model:
        return made
    parts: list[KerasModel | None] = [None, None]
    if settings.part == "model" and config.is_encoder_decoder:
        for i, part in enumerate(("encoder", "decoder")):
            of_part = Settings(settings.name, part, settings.lm, inputs=list(configs.T5_INPUTS[part]))
            parts[i] = KerasModel(made.network, of_part)
    return Transformer(made, parts[0], parts[1], edit)


def refuse_mapping(mapping: Any) -> None:
    """Raise Unsupported unless mapping is empty or None, which stand for the original's names in bert4keras too."""
    if mapping:
        raise Unsupported(
            f"a mapping of {len(mapping)} layers was given; only the original's names of weights are supported; leave "
            "mapping out, or move arrays under other names with get_weights and set_weights of model.get_layer(name)"
        )


def fill_network(network: Model, checkpoint: str, edit: VocabularyEdit | None) -> None:
    """Fill a network from a checkpoint in the original's names, whose vocabulary is edited first."""
    names = FAMILIES[network.config.family].tensorflow
    assert names is not None
    weights = get_weights_dtype()
    dtype = None if weights is None or weights in QUANTIZED else getattr(torch, weights)
    # bert4keras looks up the names it knows and ignores the rest.
    dropped = {".*": "a name that bert4keras does not read"}
    with open_source(checkpoint) as source:
        fill(network, source, names.rows(network.config), dropped=dropped, dtype=dtype, edit=edit, fresh=_FRESH)


__getattr__ = partial(absent, "bert4keras.models")
