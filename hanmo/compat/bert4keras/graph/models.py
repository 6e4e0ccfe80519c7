"""bert4keras.models for scripts that need Keras: `build_transformer_model` and what it returns."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import torch
from keras import KerasTensor

from hanmo.compat.bert4keras import models as plain
from hanmo.compat.bert4keras._absent import absent
from hanmo.compat.bert4keras._model import KerasModel
from hanmo.compat.bert4keras.configs import Input as Condition
from hanmo.compat.bert4keras.configs import get_weights_dtype, set_weights_dtype
from hanmo.compat.bert4keras.graph.model import Model
from hanmo.compat.bert4keras.graph.network import Network
from hanmo.compat.bert4keras.graph.parts import Block, Embeddings, Heads, Part

__all__ = ["Model", "Transformer", "build_transformer_model", "keras"]


CLASSES = (
    "classes of networks cannot be extended; build_transformer_model(…, return_keras_model=False) gives a Transformer, "
    "whose apply_embeddings, apply_main_layers and apply_final_layers join its parts anew"
)


class Transformer:
    """What `build_transformer_model(…, return_keras_model=False)` returns: the model, and the two parts of a T5."""

    def __init__(
        self,
        built: plain.Transformer,
        model: Model,
        encoder: Model | None = None,
        decoder: Model | None = None,
    ) -> None:
        self._given: list[KerasTensor] | None = None
        self._built, self.model, self.encoder, self.decoder = built, model, encoder, decoder
        config = built.model.config
        self.initializer = keras.initializers.TruncatedNormal(stddev=config.initializer)
        self.num_hidden_layers, self.hidden_size = config.main.num_layers, config.main.hidden_size
        self.vocab_size = config.vocab_size

    @property
    def layers(self) -> dict[str, Any]:
        return {layer.name: layer for layer in self.model.layers}

    @property
    def inputs(self) -> list[KerasTensor]:
        return self.model.inputs

    @property
    def outputs(self) -> list[KerasTensor]:
        return self.model.outputs

    @property
    def input(self) -> Any:
        return self.model.input

    @property
    def output(self) -> Any:
        return self.model.output

    def call(self, inputs: Any) -> Any:
        """Return the outputs for other symbolic inputs, as `model` computes them."""
        return self.model(inputs)

    def apply_embeddings(self, inputs: Any) -> KerasTensor:
        """Return the vectors of the tokens of symbolic inputs, which the blocks and heads applied next take too."""
        self._given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        return self._part(Embeddings, self._given[0])

    def apply_main_layers(self, inputs: KerasTensor, index: int) -> KerasTensor:
        """Apply the block of an index, from 0, to hidden states."""
        return self._part(Block, inputs, index=index)

    def apply_final_layers(self, inputs: KerasTensor) -> Any:
        """Apply the heads of the model to hidden states: an output, or a list of them."""
        found = self._part(Heads, inputs)
        return found if len(found) > 1 else found[0]

    def _part(self, kind: type[Part], hidden: KerasTensor, **options: Any) -> Any:
        part = kind(self._built.model.network, self._built.model.settings, **options)
        return part([hidden, *(self.model.inputs if self._given is None else self._given)])

    def load_weights_from_checkpoint(self, checkpoint: str, mapping: Any = None) -> None:
        """Load a TensorFlow checkpoint with the original's names; raises Unsupported for a mapping."""
        plain.refuse_mapping(mapping)
        network = self._built.model.network
        loaded = network.empty()
        plain.fill_network(loaded, checkpoint, self._built.edit)
        with torch.no_grad():  # into the parameters that Keras's variables hold
            for parameter, new in zip(network.parameters(), loaded.parameters(), strict=True):
                parameter.copy_(new)

    def save_weights_as_checkpoint(self, filename: str, mapping: Any = None, dtype: str | None = None) -> None:
        """Write a TensorFlow checkpoint with the original's names; raises Unsupported for a mapping."""
        self._built.save_weights_as_checkpoint(filename, mapping, dtype)


def build_transformer_model(
    config_path: str | None = None,
    checkpoint_path: str | None = None,
    model: str = "bert",
    application: str = "encoder",
    return_keras_model: bool = True,
    **kwargs: Any,
) -> Any:
    """Build a model as bert4keras 0.11.5 does, and load a checkpoint into it; see `hanmo.compat.bert4keras.models`.

    layer_norm_cond, additional_input_layers: symbolic tensors of Keras.
    Returns a Model, or a Transformer that holds it.
    """
    if (dtype := get_weights_dtype()) not in (None, "float32"):
        logging.getLogger("hanmo").warning(f"hanmo: computing in float32, not in {dtype}: Keras trains the model")
        set_weights_dtype(None)
    condition, additional = kwargs.get("layer_norm_cond"), kwargs.pop("additional_input_layers", None)
    if isinstance(condition, KerasTensor):
        kwargs["layer_norm_cond"] = Condition(tuple(condition.shape[1:]))
    built = plain.build_transformer_model(
        config_path, checkpoint_path, model=model, application=application, return_keras_model=False, **kwargs
    )
    extra = list(additional) if isinstance(additional, list | tuple) else [] if additional is None else [additional]
    parts = (None if part is None else _wrap(part) for part in (built.encoder, built.decoder))
    transformer = Transformer(built, _wrap(built.model, condition, extra), *parts)
    return transformer.model if return_keras_model else transformer


def _wrap(part: KerasModel, condition: Any = None, extra: Sequence[KerasTensor] = ()) -> Model:
    """Make a Keras model of a network, with further inputs."""
    symbols = []
    for name in part.settings.inputs:
        if name == part.settings.condition:
            symbols.append(condition)
        elif name == "Input-Context":
            symbols.append(keras.Input((None, part.config.main.hidden_size), name=name))
        else:
            symbols.append(keras.Input((None,), name=name, dtype="int32"))
    network = Network(part.network, part.settings)
    outputs = network(symbols if len(symbols) > 1 else symbols[0])[: len(network.kinds)]
    inputs = [each for each in symbols if each is not condition]
    return Model([*inputs, *extra], outputs if len(outputs) > 1 else outputs[0])


__getattr__ = partial(absent, "bert4keras.models", alternative=CLASSES)
