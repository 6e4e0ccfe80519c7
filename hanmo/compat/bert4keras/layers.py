"""bert4keras's layer names over our parameters: `get_layer(name).get_weights()` in Keras's order and orientation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hanmo.compat.bert4keras._absent import BERT4KERAS, Absent, absent
from hanmo.compat.bert4keras.configs import Settings
from hanmo.compat.bert4keras.keras import keras
from hanmo.config import StackConfig
from hanmo.errors import ConfigError
from hanmo.model import Model

__all__ = ["Input", "keras", *BERT4KERAS["layers"]]

Array = npt.NDArray[Any]


@dataclass
class Input:
    """A placeholder that names an extra input, such as the condition of conditional norms.

    shape: as in Keras, without the batch; the last number is the hidden_size.
    """

    shape: tuple[int | None, ...]
    name: str = "cond"

    @property
    def hidden_size(self) -> int:
        """Features of the input."""
        if not self.shape or self.shape[-1] is None:
            raise ConfigError(f"shape of Input {self.name!r} is {self.shape}; its last number must be known")
        return self.shape[-1]


class KerasLayer:
    """One layer's weights, each with whether Keras keeps it transposed."""

    def __init__(self, name: str, network: Callable[[], Model], weights: list[tuple[str, bool]]) -> None:
        self.name = name
        self._network = network
        self._weights = weights

    def get_weights(self) -> list[Array]:
        """Copy the weights: kernels are [in, out], norms begin with beta."""
        return [np.array((p.T if turned else p).detach().float().numpy()) for p, turned in self._parameters()]

    def set_weights(self, weights: list[Any]) -> None:
        """Overwrite the weights; raises ConfigError if their number or a shape is another."""
        parameters = self._parameters()
        if len(weights) != len(parameters):
            raise ConfigError(f"layer {self.name!r} has {len(parameters)} weights; {len(weights)} were given")
        for i, ((parameter, turned), value) in enumerate(zip(parameters, weights, strict=True)):
            tensor = torch.from_numpy(np.array(value))
            tensor = tensor.T if turned else tensor
            if tensor.shape != parameter.shape:
                expected = tuple(parameter.T.shape if turned else parameter.shape)
                raise ConfigError(f"weight {i} of layer {self.name!r} is {np.shape(value)}; expected {expected}")
            with torch.no_grad():
                parameter.copy_(tensor)

    @property
    def output(self) -> Absent:
        """Stand in for the tensor that the layer gives."""
        return Absent(f"get_layer({self.name!r}).output", "take it by a forward hook of torch on model.network")

    def _parameters(self) -> list[tuple[torch.nn.Parameter, bool]]:
        network = self._network()
        return [(network.get_parameter(name), turned) for name, turned in self._weights]


def keras_layers(network: Model, settings: Settings, filled: Callable[[], Model]) -> dict[str, KerasLayer]:
    """Name every layer of a network as bert4keras does; filled: gives the network when weights are asked for."""
    names: dict[str, list[tuple[str, bool]]] = {"Embedding-Token": [("token.weight", False)]}
    t5 = settings.name.removeprefix("m").startswith("t5")
    for side, stack in (("encoder", network.config.encoder), ("decoder", network.config.decoder)):
        if stack is not None:
            names |= _stack(side, stack, f"{side.capitalize()}-" if t5 else "")
    names |= {
        "Pooler-Dense": _dense("pooler.dense"),
        "NSP-Proba": _dense("pooler.nsp"),
        "MLM-Dense": _dense("output.dense"),
        "MLM-Norm": _norm("output.norm"),
        "MLM-Bias": [("output.bias", False)],
        "Decoder-Output-LM": [("output.weight", True)],
        "Discriminator-Dense": _dense("discriminator.dense"),
        "Discriminator-Prediction": _dense("discriminator.output"),
    }
    have = dict(network.named_parameters())
    layers = {}
    for name, weights in names.items():
        there = [(ours, turned) for ours, turned in weights if ours in have]
        if there:
            layers[name] = KerasLayer(name, filled, there)
    return layers


def _dense(ours: str) -> list[tuple[str, bool]]:
    return [(f"{ours}.weight", True), (f"{ours}.bias", False)]


def _norm(ours: str) -> list[tuple[str, bool]]:
    conditions = [(f"{ours}.{name}.weight", True) for name in ("hidden", "condition_bias", "condition_scale")]
    return [(f"{ours}.bias", False), (f"{ours}.weight", False), *conditions]


def _stack(side: str, stack: StackConfig, prefix: str) -> dict[str, list[tuple[str, bool]]]:
    embedding = f"{side}.embedding"
    names = {
        f"{prefix}Embedding-Segment": [(f"{embedding}.segment.weight", False)],
        f"{prefix}Embedding-Position": [(f"{embedding}.position.weight", False)],
        f"{prefix}Embedding-Norm": _norm(f"{embedding}.norm"),
        f"{prefix}Embedding-Mapping": _dense(f"{embedding}.project"),
        f"{prefix}Embedding-Relative-Position": [(f"{side}.relative.weight", True)],
        f"{prefix}Output-Norm": _norm(f"{side}.norm"),
    }
    titles = {"attention": "MultiHeadSelfAttention", "cross": "MultiHeadCrossAttention", "feed_forward": "FeedForward"}
    for i in range(1 if stack.shared_layers else stack.num_layers):
        for sublayer in stack.order:
            ours = f"{side}.blocks.{i}.{sublayer.kind}"
            number = "" if stack.shared_layers else f"{i}-"
            title = f"{prefix}Transformer-{number}{titles[sublayer.kind]}"
            parts = (
                ("gate", "input", "output") if sublayer.kind == "feed_forward" else ("query", "key", "value", "output")
            )
            names[title] = [weight for part in parts for weight in _dense(f"{ours}.{part}")]
            both = sublayer.pre and sublayer.post
            if sublayer.pre:
                names[f"{title}-Norm{'-0' if both else ''}"] = _norm(f"{ours}_pre")
            if sublayer.post:
                names[f"{title}-Norm{'-1' if both else ''}"] = _norm(f"{ours}_post")
    return names


def __getattr__(name: str) -> Any:
    """Stand in for a layer of Keras or bert4keras."""
    return absent("bert4keras.layers", name, BERT4KERAS["layers"])
