"""The weights of a network: under bert4keras's layer names as Keras orders and turns them, and in one file.

The file holds Hanmo's parameters in safetensors form, with the configuration and `Settings` in its header; it is
written completely or not at all. Weights are also written as a TensorFlow checkpoint.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hanmo.checkpoint.load import as_tensor, fill
from hanmo.checkpoint.names import rows_of
from hanmo.checkpoint.safetensors import Safetensors, write_safetensors
from hanmo.checkpoint.save import items_of
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.compat.bert4keras._absent import Absent
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, CorruptFile, TensorMismatch, Unsupported
from hanmo.families import FAMILIES, Row
from hanmo.files import open_file, parse_json
from hanmo.model import Model

Array = npt.NDArray[Any]
StrPath = str | os.PathLike[str]
_EMBEDDING = ("segment", "position", "norm")
_DENSE = ("weight", "bias")
_NORM = ("bias", "weight", "hidden.weight", "condition_bias.weight", "condition_scale.weight")
_TITLES = {
    "attention": ("MultiHeadSelfAttention", ("query", "key", "value", "output")),
    "cross": ("MultiHeadCrossAttention", ("query", "key", "value", "output")),
    "feed_forward": ("FeedForward", ("gate", "input", "output")),
}


class KerasLayer:
    """Some weights of a network, which `loaded` returns once they are needed."""

    def __init__(self, name: str, loaded: Callable[[], Model], weights: list[str]) -> None:
        self.name, self._loaded, self.names = name, loaded, weights
        self.output = Absent(f"get_layer({name!r}).output")

    def get_weights(self) -> list[Array]:
        """Copy the weights; kernels are [in, out], and beta is the first weight of a norm."""
        return [np.array(weight.detach().float().cpu().numpy()) for weight in self._as_in_keras()]

    def set_weights(self, weights: list[Any]) -> None:
        """Overwrite the weights; raises ConfigError if their number or a shape differs."""
        own = self._as_in_keras()
        if len(weights) != len(own):
            raise ConfigError(f"layer {self.name!r} has {len(own)} weights; {len(weights)} were given")
        for i, (weight, value) in enumerate(zip(own, weights, strict=True)):
            if np.shape(value) != weight.shape:
                shapes = f"{np.shape(value)}; expected {tuple(weight.shape)}"
                raise ConfigError(f"weight {i} of layer {self.name!r} is {shapes}")
            with torch.no_grad():
                weight.copy_(torch.from_numpy(np.array(value)))

    def _as_in_keras(self) -> list[torch.Tensor]:
        """Return the weights, each kernel as a transposed view; tables of embeddings are no kernels."""
        weights = [(name, self._loaded().get_parameter(name)) for name in self.names]
        tables = ("token.weight", "segment.weight", "position.weight")
        return [weight.T if weight.ndim == 2 and not name.endswith(tables) else weight for name, weight in weights]


def layer_paths(config: ModelConfig, name: str) -> dict[str, list[str]]:
    """List the modules of every layer, as paths in a network, by bert4keras's name of the layer; some do not exist.

    name: bert4keras's name of the model.
    """
    t5 = name.removeprefix("m").startswith("t5")
    modules = {"Embedding-Token": ["token"]}
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if stack is None:
            continue
        prefix = f"{side.capitalize()}-" if t5 else ""
        modules |= {f"{prefix}Embedding-{each.title()}": [f"{side}.embedding.{each}"] for each in _EMBEDDING}
        modules |= {
            f"{prefix}Embedding-Mapping": [f"{side}.embedding.project"],
            f"{prefix}Embedding-Relative-Position": [f"{side}.relative"],
        }
        for i in range(1 if stack.shared_layers else stack.num_layers):
            for sublayer in stack.order:
                ours, (title, parts) = f"{side}.blocks.{i}.{sublayer.kind}", _TITLES[sublayer.kind]
                title = f"{prefix}Transformer-{'' if stack.shared_layers else f'{i}-'}{title}"
                modules[title] = [f"{ours}.{part}" for part in parts]
                norms = [where for where in ("pre", "post") if getattr(sublayer, where)]
                for number, where in enumerate(norms):
                    modules[f"{title}-Norm{f'-{number}' if len(norms) > 1 else ''}"] = [f"{ours}_{where}"]
        modules[f"{prefix}Output-Norm"] = [f"{side}.norm"]
    return modules | {
        "Pooler-Dense": ["pooler.dense"],
        "NSP-Proba": ["pooler.nsp"],
        "MLM-Dense": ["output.dense"],
        "MLM-Norm": ["output.norm"],
        "Decoder-Output-LM" if t5 else "MLM-Bias": ["output"],
        "Discriminator-Dense": ["discriminator.dense"],
        "Discriminator-Prediction": ["discriminator.output"],
    }


def keras_layers(network: Model, settings: Settings, loaded: Callable[[], Model]) -> dict[str, KerasLayer]:
    """Name the layers of a network as bert4keras does; loaded: returns the network once its weights are needed."""
    present = {name for name, _ in network.named_parameters()}
    layers = {}
    for name, paths in layer_paths(network.config, settings.name).items():
        weights = [f"{path}.{weight}" for path in paths for weight in (_NORM if "-Norm" in name else _DENSE)]
        if weights := [weight for weight in weights if weight in present]:
            layers[name] = KerasLayer(name, loaded, weights)
    return layers


def save(model: Any, filepath: StrPath, overwrite: bool = True, include_optimizer: bool = False) -> None:
    """Write a KerasModel to one file, which `load` and `load_weights` read.

    Raises CheckpointError for a folder, or a file that must not be replaced.
    """
    file = Path(filepath)
    if file.is_dir() or (file.exists() and not overwrite):
        raise CheckpointError(f"{file} {'is a folder' if file.is_dir() else 'exists'}; give the path of a new file")
    metadata = {"hanmo": model.config.to_json(), "bert4keras": json.dumps(asdict(model.settings))}
    state = dict(model.network.named_parameters())
    write_safetensors(file, items_of(state, _rows(state)), metadata=metadata)


def load(path: StrPath) -> tuple[Model, Settings]:
    """Read what `save` wrote; raises MissingFile, Unsupported for a file of Keras's own, CheckpointError for others."""
    with open_saved(path) as source:
        metadata = source.metadata
        if "keras" in metadata:
            raise Unsupported(f"{path} is a model of Keras layers; give the command `hanmo run` the option --keras")
        if not {"hanmo", "bert4keras"} <= set(metadata):
            raise CheckpointError(f"{path} holds tensors alone; build the model and give the file to its load_weights")
        config = ModelConfig.from_json(metadata["hanmo"])
        try:
            data = parse_json(metadata["bert4keras"], f"{path}: its header")
            if set(data) != (known := {each.name for each in fields(Settings)}):
                raise ValueError(f"expected the fields {', '.join(sorted(known))}")
        except ValueError as error:
            raise CorruptFile(f"{path}: its header does not tell the model's outputs: {error}; save it again") from None
        with torch.device("meta"):
            network = Model(config)
        fill(network, source, _rows(dict(network.named_parameters())), dropped={})
    return network, Settings(**data)


def load_weights(model: Any, filepath: StrPath, by_name: bool = False, skip_mismatch: bool = False) -> None:
    """Overwrite the weights of a KerasModel by those of a file that `save` wrote.

    by_name: ignore weights that the file lacks.   skip_mismatch: with by_name, ignore those of another shape too.
    Raises TensorMismatch for a weight that is missing or of another shape; then no weight is overwritten.
    """
    network, new = model.network, {}
    with open_saved(filepath) as source:
        for name, parameter in network.named_parameters():
            info = source.tensors.get(name)
            if info is not None and info.shape == tuple(parameter.shape):
                new[name] = as_tensor(source.read(name), info.dtype)
            elif info is None and not by_name:
                raise TensorMismatch(
                    f"{filepath} has no {name}; was it saved from another model? by_name=True takes the rest"
                )
            elif info is not None and not (by_name and skip_mismatch):
                shapes = f"{list(info.shape)} in {filepath}; this model has {list(parameter.shape)}"
                raise TensorMismatch(f"{name} is {shapes}")
    with torch.no_grad():
        for name, tensor in new.items():
            network.get_parameter(name).copy_(tensor)


def save_checkpoint(network: Model, prefix: StrPath, dtype: str | None) -> None:
    """Write the weights as a TensorFlow checkpoint with the original's names; dtype: None keeps that of each weight."""
    names = FAMILIES[network.config.family].tensorflow
    assert names is not None
    state = {name: parameter.detach().cpu() for name, parameter in network.named_parameters()}
    rows = rows_of(state, names.rows(network.config))
    write_bundle(Path(prefix), items_of(state, rows, getattr(torch, dtype) if dtype else None))


def _rows(state: Iterable[str]) -> list[Row]:
    return [Row((name,), name) for name in state]


def open_saved(path: StrPath) -> Safetensors:
    """Open what `save` wrote; raises MissingFile, and Unsupported for a file of Keras's own."""
    with open_file(Path(path)) as stream:
        if stream.read(8) == b"\x89HDF\r\n\x1a\n":
            raise Unsupported(
                f"{path} is an HDF5 file of Keras's; where bert4keras still runs, load it and write the weights "
                "with Transformer.save_weights_as_checkpoint, which build_transformer_model reads"
            )
    return Safetensors(Path(path))
