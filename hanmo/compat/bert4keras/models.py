"""bert4keras.models: `build_transformer_model`, and models with `.predict` by its conventions.

NumPy in, NumPy out. Id 0 is masked as a key except at the first position, outputs end in their activation.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from hanmo.checkpoint.load import fill
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.vocabulary_edit import Average, VocabularyEdit
from hanmo.compat.bert4keras import _saving, backend, configs
from hanmo.compat.bert4keras._absent import BERT4KERAS, TRAINING, Absent, absent
from hanmo.compat.bert4keras._forward import TOKENS, outputs_of
from hanmo.compat.bert4keras._prefix import Prefix
from hanmo.compat.bert4keras._rounded import ROUNDED, RoundedRunner, note, open_rounded
from hanmo.compat.bert4keras._runner import Runner, TorchRunner, stamp
from hanmo.compat.bert4keras.configs import Settings
from hanmo.compat.bert4keras.keras import Handle, keras
from hanmo.compat.bert4keras.layers import Input, KerasLayer, keras_layers
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile, PromptError
from hanmo.families import FAMILIES
from hanmo.files import read_json
from hanmo.model import Model

__all__ = ["Input", "KerasModel", "Transformer", "build_transformer_model", "keras"]

Array = npt.NDArray[Any]

# Parameters that no checkpoint holds and bert4keras starts at zero: those of conditional norms.
_FRESH = r"\.(condition_scale|condition_bias|hidden)\.weight$"


class KerasModel:
    """A network behind Keras's inference interface.

    rounded: what computes in its place, and is not the network but what was rounded from the same checkpoint.
    fill: reads that network's weights; called when they are first asked for.
    """

    def __init__(
        self,
        network: Model,
        settings: Settings,
        *,
        rounded: RoundedRunner | None = None,
        fill: Callable[[], None] | None = None,
    ) -> None:
        self.config = network.config
        self.settings = settings
        self.layer_map = keras_layers(network, settings, lambda: self.network)
        self._network = network.eval()
        self._rounded, self._fill, self._stamp = rounded, fill, 0
        self._compute_by(rounded or TorchRunner(network, settings))

    def _compute_by(self, runner: Runner) -> None:
        self._runner = runner
        helps = Prefix.helps(self.config, self.settings)
        self.prefix = Prefix(self.config, self.settings, runner) if helps else None

    @property
    def network(self) -> Model:
        """The network, with the checkpoint's own weights; of a model that computes in others, read only now."""
        if self._fill is not None:
            self._fill()
            self._fill, self._stamp = None, stamp(self._network)
        return self._network

    @property
    def inputs(self) -> list[Handle]:
        """What `keras.models.Model` takes as inputs."""
        return [Handle(self, "input", i) for i in range(len(self.settings.inputs))]

    @property
    def outputs(self) -> list[Handle]:
        """What `keras.models.Model` chooses outputs by."""
        return [Handle(self, "output", i) for i in range(len(outputs_of(self.config, self.settings)))]

    @property
    def input(self) -> Any:
        """The inputs, or the only one."""
        return self.inputs[0] if len(self.inputs) == 1 else self.inputs

    @property
    def output(self) -> Any:
        """The outputs, or the only one."""
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in the order in which `predict` takes them."""
        return list(self.settings.inputs)

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: int = 0, steps: int | None = None
    ) -> Array | list[Array]:
        """Run arrays through the network, batch by batch; of a text that goes on from the last one, only what is new.

        x: one array, a list of arrays in the order of `input_names`, or a dict by those names; integers for tokens.
        batch_size: rows at once, 32 as in Keras.   verbose, steps: taken and not used.
        Returns one array, or a list where the model has several outputs.
        Raises ConfigError if the inputs are not as many as the model has, differ in their rows, or hold ids that
        the model does not know, and PromptError if they hold no token.
        """
        return self._predict(x, batch_size or 32, last=False)

    def predict_last(self, x: Any, batch_size: int | None = None) -> Array | list[Array]:
        """Give `predict(x)[:, -1]` of every output, computing the vocabulary's scores at the last position only."""
        outputs = self._predict(x, batch_size or 32, last=True)
        return [output[:, -1] for output in outputs] if isinstance(outputs, list) else outputs[:, -1]

    def predict_on_batch(self, x: Any) -> Array | list[Array]:
        """Predict, with all rows at once."""
        return self._predict(x, sys.maxsize, last=False)

    def _predict(self, x: Any, size: int, *, last: bool) -> Array | list[Array]:
        inputs = self._arrays(x)
        if self._rounded is not None and self._fill is None and stamp(self._network) != self._stamp:
            note(self._rounded.kind, "the model's weights were changed")
            self._rounded = None
            self._compute_by(TorchRunner(self._network, self.settings))
        rows = len(next(iter(inputs.values())))
        parts: list[list[Array]] = []
        with torch.inference_mode():
            if self.prefix is not None:
                kept = self.prefix.predict(inputs, last=last, rows_at_once=size)
                if kept is not None:
                    return kept
            for start in range(0, rows, size):
                batch = {name: array[start : start + size] for name, array in inputs.items()}
                parts.append(self._runner.run(batch, last=last))
        joined = [np.concatenate(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True)]
        return joined if len(joined) > 1 else joined[0]

    def get_layer(self, name: str) -> KerasLayer:
        """Give a layer by bert4keras's name for it, with `get_weights` and `set_weights`."""
        if name not in self.layer_map:
            raise ConfigError(f"no layer is named {name!r}; there are {', '.join(self.layer_map)}")
        return self.layer_map[name]

    def save(self, filepath: Any, overwrite: bool = True, include_optimizer: bool = False) -> None:
        """Write the model to one file, which `keras.models.load_model` reads."""
        _saving.save(self, filepath, overwrite=overwrite)

    def save_weights(self, filepath: Any, overwrite: bool = True) -> None:
        """Write the weights to one file; it is the same as `save` writes."""
        _saving.save(self, filepath, overwrite=overwrite)

    def load_weights(self, filepath: Any, by_name: bool = False, skip_mismatch: bool = False) -> None:
        """Read the weights of a file that `save` or `save_weights` wrote."""
        _saving.load_weights(self, filepath, by_name=by_name, skip_mismatch=skip_mismatch)

    def count_params(self) -> int:
        """Count the weights."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def summary(self) -> None:
        """Print the layers that have weights."""
        for layer in self.layers:
            print(f"{layer.name:<48}{', '.join(str(weight.shape) for weight in layer.get_weights())}")
        print(f"Total params: {self.count_params():,}")

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise Unsupported."""
        Absent("calling a model on tensors", "call model.network, a torch.nn.Module").refuse()

    compile = fit = fit_generator = train_on_batch = evaluate = evaluate_generator = test_on_batch = Absent(
        "compiling and fitting a model", TRAINING
    )

    @property
    def layers(self) -> list[KerasLayer]:
        """Every layer that has weights."""
        return list(self.layer_map.values())

    def _arrays(self, x: Any) -> dict[str, Array]:
        names = self.settings.inputs
        if isinstance(x, dict):
            x = [x[name] for name in names]
        elif not isinstance(x, list | tuple) or (len(names) == 1 and len(x) != 1):
            x = [x]
        if len(x) != len(names):
            raise ConfigError(f"predict was given {len(x)} inputs; this model has {len(names)}: {', '.join(names)}")
        arrays = {}
        for name, value in zip(names, x, strict=True):
            array = np.ascontiguousarray(value)
            whole = name not in ("Input-Context", self.settings.condition)
            arrays[name] = array.astype(np.int64 if whole else np.float32, copy=not array.flags.writeable)
            if whole:
                _check(name, arrays[name], self.config.vocab_size if name.endswith("-Token") else None)
        if len({len(array) for array in arrays.values()}) > 1:
            counts = ", ".join(str(len(array)) for array in arrays.values())
            raise ConfigError(f"the inputs have {counts} rows; expected as many in each")
        if len({array.shape for name, array in arrays.items() if name in TOKENS}) > 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if name in TOKENS)
            raise ConfigError(f"the inputs have the shapes {shapes}; expected one number a token in each")
        return arrays


def _check(name: str, ids: Array, vocab_size: int | None) -> None:
    if ids.ndim != 2:
        raise ConfigError(f"{name} has the shape {ids.shape}; expected [rows, tokens], such as np.array([ids])")
    if not ids.size:
        raise PromptError(f"{name} has the shape {ids.shape}, without a token; give each text at least one")
    if vocab_size is not None and not (0 <= ids.min() and ids.max() < vocab_size):
        wrong = ids.max() if ids.min() >= 0 else ids.min()
        raise ConfigError(
            f"{name} holds the id {wrong}; the model knows 0 … {vocab_size - 1}: is it this vocabulary's?"
        )


class Transformer:
    """What `build_transformer_model(…, return_keras_model=False)` gives: the model, and a T5's two halves."""

    def __init__(self, model: KerasModel, encoder: KerasModel | None, decoder: KerasModel | None) -> None:
        self.model = model
        self.encoder = encoder
        self.decoder = decoder

    @property
    def layers(self) -> dict[str, KerasLayer]:
        """Layers by name."""
        return self.model.layer_map

    @property
    def inputs(self) -> list[Handle]:
        """The model's inputs."""
        return self.model.inputs

    @property
    def outputs(self) -> list[Handle]:
        """The model's outputs."""
        return self.model.outputs

    def load_weights_from_checkpoint(self, checkpoint: str, mapping: None = None) -> None:
        """Read the weights of a TensorFlow checkpoint with the original's names; mapping must be None."""
        kind = backend.get_weights_dtype()
        if kind in ROUNDED:
            note(kind, "the checkpoint was given after the model was built")
        _fill(self.model.network, checkpoint, None)

    def save_weights_as_checkpoint(self, filename: str, mapping: None = None, dtype: str | None = None) -> None:
        """Write the weights as a TensorFlow checkpoint with the original's names, in `dtype`; mapping must be None."""
        _saving.save_checkpoint(self.model, filename, dtype=dtype)


def build_transformer_model(
    config_path: str | None = None,
    checkpoint_path: str | None = None,
    model: str = "bert",
    application: str = "encoder",
    return_keras_model: bool = True,
    **kwargs: Any,
) -> Any:
    """Build a model as bert4keras 0.11.5 does, and load a checkpoint into it.

    config_path: a config.json, with the keyword arguments over it.   checkpoint_path: the prefix of a TensorFlow
    checkpoint; None leaves random weights.   model, application and the keyword arguments: as in bert4keras.
    Returns a KerasModel, or a Transformer around it.
    Raises ConfigError, Unsupported, MissingFile or CheckpointError.
    """
    data = _read_config(config_path) | kwargs
    name = model.lower()
    config, settings = configs.read(data, name, application.lower(), backend.get_gelu())
    edit = _vocabulary_edit(data)
    if edit is not None:
        config = replace(config, vocab_size=edit.size(config.vocab_size))
    keras_model = _model(config, settings, checkpoint_path, edit)
    return keras_model if return_keras_model else _transformer(keras_model)


def _model(config: ModelConfig, settings: Settings, checkpoint: str | None, edit: VocabularyEdit | None) -> KerasModel:
    if checkpoint is None:
        return KerasModel(Model(config).initialize(), settings)
    with torch.device("meta"):
        network = Model(config)
    kind = backend.get_weights_dtype()
    if kind in ROUNDED:
        runner = open_rounded(config, settings, checkpoint, kind, edited=edit is not None)
        if runner is not None:
            return KerasModel(network, settings, rounded=runner, fill=lambda: _fill(network, checkpoint, edit))
    _fill(network, checkpoint, edit)
    return KerasModel(network, settings)


def _fill(network: Model, checkpoint: str, edit: VocabularyEdit | None) -> None:
    names = FAMILIES[network.config.family].tensorflow
    assert names is not None
    kind = backend.get_weights_dtype()
    dtype = None if kind is None or kind in ROUNDED else getattr(torch, kind)
    # bert4keras looks up the names it knows and passes over the rest.
    dropped = {".*": "a name that bert4keras does not read"}
    with open_source(checkpoint) as source:
        fill(network, source, names.rows(network.config), dropped=dropped, dtype=dtype, edit=edit, fresh=_FRESH)


def _transformer(model: KerasModel) -> Transformer:
    if model.settings.part != "model" or model.network.encoder is None or model.network.decoder is None:
        return Transformer(model, None, None)
    halves = []
    for part, inputs in (
        ("encoder", ["Encoder-Input-Token"]),
        ("decoder", ["Input-Context", "Decoder-Input-Token"]),
    ):
        settings = Settings(model.settings.name, part=part, lm=model.settings.lm, inputs=inputs)
        halves.append(KerasModel(model.network, settings))
    return Transformer(model, *halves)


def _read_config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    file = Path(path)
    if not file.is_file():
        raise MissingFile(f"no configuration at {path}; give the config.json that belongs to the checkpoint")
    return dict(read_json(file, error=ConfigError))


def _vocabulary_edit(data: dict[str, Any]) -> VocabularyEdit | None:
    keep: Sequence[int] | None = data.get("keep_tokens")
    compound = data.get("compound_tokens")
    if keep is None and compound is None:
        return None
    # As in bert4keras a list is of ids alone, a tuple of ids and weights.
    add = [Average(item[0], item[1]) if isinstance(item, tuple) else Average(item) for item in compound or ()]
    return VocabularyEdit(keep, add)


def __getattr__(name: str) -> Any:
    """Stand in for the classes that built Keras graphs."""
    return absent("bert4keras.models", name, BERT4KERAS["models"])
