"""The weights of a network under bert4keras's layer names, in the order and orientation of Keras."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hanmo.compat.bert4keras._absent import Absent
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import StackConfig
from hanmo.errors import ConfigError
from hanmo.model import Model

Array = npt.NDArray[Any]


class KerasLayer:
    """The weights of one layer: (parameter name, whether it is transposed in Keras)."""

    def __init__(self, name: str, network: Callable[[], Model], weights: list[tuple[str, bool]]) -> None:
        self.name, self._network, self._weights = name, network, weights

    def get_weights(self) -> list[Array]:
        """Copy the weights; kernels are [in, out], and beta is the first weight of a norm."""
        return [np.array((p.T if transposed else p).detach().float().numpy()) for p, transposed in self._parameters()]

    def set_weights(self, weights: list[Any]) -> None:
        """Overwrite the weights; raises ConfigError if their number or a shape differs."""
        parameters = self._parameters()
        if len(weights) != len(parameters):
            raise ConfigError(f"layer {self.name!r} has {len(parameters)} weights; {len(weights)} were given")
        for i, ((parameter, transposed), value) in enumerate(zip(parameters, weights, strict=True)):
            tensor = torch.from_numpy(np.array(value))
            tensor = tensor.T if transposed else tensor
            if tensor.shape != parameter.shape:
                expected = tuple(parameter.T.shape if transposed else parameter.shape)
                raise ConfigError(f"weight {i} of layer {self.name!r} is {np.shape(value)}; expected {expected}")
            with torch.no_grad():
                parameter.copy_(tensor)

    @property
    def output(self) -> Absent:
        """A placeholder for the output tensor of the layer."""
        return Absent(f"get_layer({self.name!r}).output", "use a forward hook of torch on model.network")

    def _parameters(self) -> list[tuple[torch.nn.Parameter, bool]]:
        network = self._network()
        return [(network.get_parameter(name), transposed) for name, transposed in self._weights]


def keras_layers(network: Model, settings: Settings, loaded: Callable[[], Model]) -> dict[str, KerasLayer]:
    """Name the layers of a network as bert4keras does; loaded: returns the network once its weights are needed."""
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
    parameters = dict(network.named_parameters())
    present = {name: [each for each in weights if each[0] in parameters] for name, weights in names.items()}
    return {name: KerasLayer(name, loaded, weights) for name, weights in present.items() if weights}


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
