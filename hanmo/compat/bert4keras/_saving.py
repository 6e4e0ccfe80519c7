"""A bert4keras model as one file: Hanmo's parameters in safetensors form, with what the model is in the header.

`save` and `load_model`, `save_weights` and `load_weights`; and checkpoints in TensorFlow's form. Files appear whole.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hanmo.checkpoint.load import as_tensor, fill
from hanmo.checkpoint.names import export
from hanmo.checkpoint.safetensors import Safetensors, write_safetensors
from hanmo.checkpoint.source import TensorInfo
from hanmo.checkpoint.staged import Item
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.compat.bert4keras import backend
from hanmo.compat.bert4keras._rounded import ROUNDED, note
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, CorruptFile, TensorMismatch, Unsupported
from hanmo.families import FAMILIES, Row
from hanmo.files import open_file, parse_json
from hanmo.model import Model

if TYPE_CHECKING:
    from hanmo.compat.bert4keras.models import KerasModel

_HDF5 = b"\x89HDF\r\n\x1a\n"


def save(model: "KerasModel", path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a model with its weights to one file; raises CheckpointError if one is there and must not be replaced."""
    file = Path(path)
    if file.is_dir() or (file.exists() and not overwrite):
        raise CheckpointError(f"{file} {'is a folder' if file.is_dir() else 'exists'}; give the path of a new file")
    words = {"hanmo": model.network.config.to_json(), "bert4keras": json.dumps(asdict(model.settings))}
    write_safetensors(file, _items(dict(model.network.named_parameters()).items()), metadata=words)


def load_model(path: str | os.PathLike[str]) -> "KerasModel":
    """Read what `save` wrote; raises MissingFile, Unsupported for a file of Keras's own, CheckpointError for others."""
    from hanmo.compat.bert4keras.models import KerasModel

    with _open(path) as source:
        words = source.metadata
        if not {"hanmo", "bert4keras"} <= set(words):
            raise CheckpointError(f"{path} holds tensors alone; build the model and give the file to its load_weights")
        config = ModelConfig.from_json(words["hanmo"])
        settings = _settings(words["bert4keras"], path)
        with torch.device("meta"):
            network = Model(config)
        rows = [Row((name,), name) for name, _ in network.named_parameters()]
        fill(network, source, rows, dropped={})
    kind = backend.get_weights_dtype()
    if kind in ROUNDED:
        note(kind, f"{path} was saved by model.save")
    return KerasModel(network, settings)


def load_weights(model: "KerasModel", path: str | os.PathLike[str], *, by_name: bool, skip_mismatch: bool) -> None:
    """Overwrite a model's weights by those of a file that `save` or `save_weights` wrote.

    by_name: take those that are there.   skip_mismatch: and, by name, leave those of another shape.
    Raises TensorMismatch where a weight is missing or of another shape; nothing is overwritten then.
    """
    new = {}
    with _open(path) as source:
        for name, parameter in model.network.named_parameters():
            info = source.tensors.get(name)
            if info is None and by_name:
                continue
            if info is None:
                raise TensorMismatch(
                    f"{path} has no {name}; was it saved from another model? by_name=True takes the rest"
                )
            if info.shape != tuple(parameter.shape):
                if by_name and skip_mismatch:
                    continue
                raise TensorMismatch(f"{name} is {list(info.shape)} in {path}; this model has {list(parameter.shape)}")
            new[name] = as_tensor(source.read(name), info.dtype)
    with torch.no_grad():
        for name, tensor in new.items():
            model.network.get_parameter(name).copy_(tensor)


def save_checkpoint(model: "KerasModel", prefix: str | os.PathLike[str], *, dtype: str | None = None) -> None:
    """Write the weights as a TensorFlow checkpoint with the original's names.

    dtype: of the tensors in the file, such as "float16"; None keeps each as it is.
    Raises CheckpointError for a parameter that the original has no name for.
    """
    config = model.network.config
    names = FAMILIES[config.family].tensorflow
    assert names is not None
    rows = names.rows(config)
    write_bundle(Path(prefix), _items(export(dict(model.network.named_parameters()), rows), dtype))


def _items(tensors: Any, dtype: str | None = None) -> Iterator[Item]:
    for name, tensor in tensors:
        tensor = tensor.detach()
        kind = tensor.dtype if dtype is None else getattr(torch, dtype)
        raw = tensor.to(kind).contiguous()
        size = raw.numel() * raw.element_size()
        info = TensorInfo(name, str(kind).removeprefix("torch."), tuple(raw.shape), size)
        yield name, (info, [raw.reshape(-1).view(torch.uint8).numpy()])


def _open(path: str | os.PathLike[str]) -> Safetensors:
    file = Path(path)
    if file.is_file():
        with open_file(file) as stream:
            if stream.read(len(_HDF5)) == _HDF5:
                raise Unsupported(
                    f"{file} is an HDF5 file of Keras's; where bert4keras still runs, load it and write the weights "
                    "with Transformer.save_weights_as_checkpoint, which build_transformer_model reads"
                )
    return Safetensors(file)


def _settings(text: str, path: Any) -> Settings:
    try:
        data = parse_json(text, f"{path}: its header")
        if set(data) != {field.name for field in fields(Settings)}:
            raise ValueError(f"expected the fields {', '.join(field.name for field in fields(Settings))}")
        return Settings(**data)
    except ValueError as error:
        raise CorruptFile(f"{path}: its header does not tell the model's outputs: {error}; save it again") from None
