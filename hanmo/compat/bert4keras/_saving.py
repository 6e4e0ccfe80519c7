"""A network as one file: Hanmo's parameters in safetensors form, with its configuration and `Settings` in the header.

Weights as a TensorFlow checkpoint, too. A file is written completely or not at all.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

import torch

from hanmo.checkpoint.load import as_tensor, fill
from hanmo.checkpoint.names import export
from hanmo.checkpoint.safetensors import Safetensors, write_safetensors
from hanmo.checkpoint.source import Item, TensorInfo
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, CorruptFile, TensorMismatch, Unsupported
from hanmo.families import FAMILIES, Row
from hanmo.files import open_file, parse_json
from hanmo.model import Model

StrPath = str | os.PathLike[str]

_HDF5 = b"\x89HDF\r\n\x1a\n"


def save(network: Model, settings: Settings, path: StrPath, *, overwrite: bool = True) -> None:
    """Write a network to one file; raises CheckpointError for a folder, or a file that must not be replaced."""
    file = Path(path)
    if file.is_dir() or (file.exists() and not overwrite):
        raise CheckpointError(f"{file} {'is a folder' if file.is_dir() else 'exists'}; give the path of a new file")
    metadata = {"hanmo": network.config.to_json(), "bert4keras": json.dumps(asdict(settings))}
    write_safetensors(file, _items(network.named_parameters()), metadata=metadata)


def load(path: StrPath) -> tuple[Model, Settings]:
    """Read what `save` wrote; raises MissingFile, Unsupported for a file of Keras's own, CheckpointError for others."""
    with _open(path) as source:
        metadata = source.metadata
        if not {"hanmo", "bert4keras"} <= set(metadata):
            raise CheckpointError(f"{path} holds tensors alone; build the model and give the file to its load_weights")
        config = ModelConfig.from_json(metadata["hanmo"])
        try:
            data, known = (
                parse_json(metadata["bert4keras"], f"{path}: its header"),
                [each.name for each in fields(Settings)],
            )
            if set(data) != set(known):
                raise ValueError(f"expected the fields {', '.join(known)}")
        except ValueError as error:
            raise CorruptFile(f"{path}: its header does not tell the model's outputs: {error}; save it again") from None
        with torch.device("meta"):
            network = Model(config)
        fill(network, source, [Row((name,), name) for name, _ in network.named_parameters()], dropped={})
    return network, Settings(**data)


def load_weights(network: Model, path: StrPath, *, by_name: bool, skip_mismatch: bool) -> None:
    """Overwrite the weights of a network by those of a file that `save` wrote.

    by_name: ignore weights that the file lacks.   skip_mismatch: with by_name, ignore those of another shape too.
    Raises TensorMismatch for a weight that is missing or of another shape; then no weight is overwritten.
    """
    new = {}
    with _open(path) as source:
        for name, parameter in network.named_parameters():
            info = source.tensors.get(name)
            if info is not None and info.shape == tuple(parameter.shape):
                new[name] = as_tensor(source.read(name), info.dtype)
            elif info is None and not by_name:
                raise TensorMismatch(
                    f"{path} has no {name}; was it saved from another model? by_name=True takes the rest"
                )
            elif info is not None and not (by_name and skip_mismatch):
                raise TensorMismatch(f"{name} is {list(info.shape)} in {path}; this model has {list(parameter.shape)}")
    with torch.no_grad():
        for name, tensor in new.items():
            network.get_parameter(name).copy_(tensor)


def save_checkpoint(network: Model, prefix: StrPath, *, dtype: str | None = None) -> None:
    """Write the weights as a TensorFlow checkpoint with the original's names.

    dtype: of the tensors in the file, such as "float16"; None keeps that of each weight.
    Raises CheckpointError for a parameter that the original has no name for.
    """
    names = FAMILIES[network.config.family].tensorflow
    assert names is not None
    tensors = export(dict(network.named_parameters()), names.rows(network.config))
    write_bundle(Path(prefix), _items(tensors, dtype))


def _items(tensors: Iterable[tuple[str, torch.Tensor]], dtype: str | None = None) -> Iterator[Item]:
    for name, tensor in tensors:
        raw = tensor.detach().to(tensor.dtype if dtype is None else getattr(torch, dtype)).contiguous()
        info = TensorInfo(name, str(raw.dtype).removeprefix("torch."), tuple(raw.shape), raw.nbytes)
        yield name, (info, [raw.reshape(-1).view(torch.uint8).numpy()])


def _open(path: StrPath) -> Safetensors:
    file = Path(path)
    if file.is_file():
        with open_file(file) as stream:
            if stream.read(len(_HDF5)) == _HDF5:
                raise Unsupported(
                    f"{file} is an HDF5 file of Keras's; where bert4keras still runs, load it and write the weights "
                    "with Transformer.save_weights_as_checkpoint, which build_transformer_model reads"
                )
    return Safetensors(file)
