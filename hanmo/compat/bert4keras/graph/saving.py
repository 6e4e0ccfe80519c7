"""Files of models and weights: safetensors, with the first network under Hanmo's names, so that `hanmo.load` opens it.

Other weights are numbered in the model's order, under a prefix that `hanmo.load` leaves out. A file of a model has its
layers, as Keras describes them, in the header.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
from torch import Tensor

from hanmo.checkpoint.load import as_tensor
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.save import items_of
from hanmo.checkpoint.shapes import TASK_HEAD
from hanmo.compat.bert4keras._weights import open_saved
from hanmo.errors import CheckpointError, TensorMismatch, Unsupported
from hanmo.families import Row

StrPath = str | os.PathLike[str]


def save_model(model: Any, filepath: StrPath, overwrite: bool = True, include_optimizer: bool = True) -> None:
    """Write a model to one file, which `load_model`, `load_weights` and `hanmo.load` read; without the optimizer."""
    try:
        layers = json.dumps(keras.saving.serialize_keras_object(model))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise Unsupported(
            f"the model cannot be described in {filepath}: {error}; save_weights keeps its weights"
        ) from None
    _write(model, filepath, overwrite, {"keras": layers})


def save_weights(model: Any, filepath: StrPath, overwrite: bool = True) -> None:
    """Write the weights of a model to one file of any name, which `load_weights` and `hanmo.load` read."""
    _write(model, filepath, overwrite, {})


def _write(model: Any, filepath: StrPath, overwrite: bool, metadata: dict[str, str]) -> None:
    file = Path(filepath)
    if file.is_dir() or (file.exists() and not overwrite):
        raise CheckpointError(f"{file} {'is a folder' if file.is_dir() else 'exists'}; give the path of a new file")
    tensors = {name: variable.value.detach().cpu() for name, variable in named_weights(model).items()}
    if networks := networks_of(model):
        metadata["hanmo"] = networks[0].network.config.to_json()
        metadata["bert4keras"] = json.dumps(asdict(networks[0].settings))
    write_safetensors(file, items_of(tensors, [Row((name,), name) for name in tensors]), metadata=metadata or None)


def networks_of(model: Any) -> list[Any]:
    """List the layers of a model that run a network, one for each network."""
    found: dict[int, Any] = {}
    for layer in model._flatten_layers():
        if hasattr(layer, "variables_by_name"):
            found.setdefault(id(layer.network), layer)
    return list(found.values())


def named_weights(model: Any) -> dict[str, keras.Variable]:
    """Name the weights of a model in its order: as in a file."""
    names: dict[int, str] = {}
    for number, layer in enumerate(networks_of(model)):
        prefix = f"{TASK_HEAD}network{number}." if number else ""
        names |= {id(variable): prefix + name for name, variable in layer.variables_by_name.items()}
    found: dict[str, keras.Variable] = {}
    for variable in model.weights:
        own = f"{TASK_HEAD}{len(found)}.{variable.path.replace('/', '.')}"
        found[names.get(id(variable), own)] = variable
    return found


def load_weights(model: Any, filepath: StrPath, by_name: bool = False, skip_mismatch: bool = False) -> None:
    """Overwrite the weights of a model by those of a file that `save_weights` or `save_model` wrote.

    by_name: ignore weights that the file lacks.   skip_mismatch: with by_name, ignore those of another shape too.
    Raises TensorMismatch for a weight that is missing or of another shape; then no weight is overwritten.
    """
    new: list[tuple[keras.Variable, Tensor]] = []
    with open_saved(filepath) as source:
        stored = {_key(name, by_name): name for name in source.tensors}
        for name, variable in named_weights(model).items():
            where = stored.get(_key(name, by_name))
            if where is None:
                if by_name:
                    continue
                raise TensorMismatch(
                    f"{filepath} has no {variable.path}; was it saved from another model? by_name=True takes the rest"
                )
            info = source.tensors[where]
            if info.shape != tuple(variable.shape):
                if by_name and skip_mismatch:
                    continue
                shapes = f"{list(info.shape)} in {filepath}; this model has {list(variable.shape)}"
                raise TensorMismatch(f"{variable.path} is {shapes}")
            new.append((variable, as_tensor(source.read(where), info.dtype)))
        for variable, tensor in new:
            variable.assign(tensor)


def _key(name: str, by_name: bool) -> str:
    """Return what identifies a weight: its place in the model, or the names of its layer and itself."""
    if not name.startswith(TASK_HEAD) or name.startswith(f"{TASK_HEAD}network"):
        return name
    place, _, path = name.removeprefix(TASK_HEAD).partition(".")
    return path if by_name else place


def load_model(
    filepath: StrPath, custom_objects: dict[str, Any] | None = None, compile: bool = True, safe_mode: bool = True
) -> Any:
    """Load what `save_model` wrote; it is not compiled.

    custom_objects: classes and functions of the script, by name.   safe_mode: refuse code in the file, as that of a
    Lambda layer with a lambda.
    """
    with open_saved(filepath) as source:
        described = source.metadata.get("keras")
    if described is None:
        raise CheckpointError(f"{filepath} holds weights alone; build the model and give the file to its load_weights")
    try:
        config = json.loads(described)
        model = keras.saving.deserialize_keras_object(config, custom_objects=custom_objects, safe_mode=safe_mode)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Unsupported(
            f"{filepath} cannot be loaded as a model: {reason}; give the script's classes as custom_objects, or build "
            "the model and use load_weights"
        ) from None
    load_weights(model, filepath)
    return model


class ModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras's callback for files of any name."""

    def __init__(self, filepath: StrPath, *arguments: Any, save_weights_only: bool = False, **options: Any) -> None:
        options.pop("period", None)
        ending = ".weights.h5" if save_weights_only else ".keras"
        super().__init__(f"model{ending}", *arguments, save_weights_only=save_weights_only, **options)
        self.filepath = os.fspath(filepath)
