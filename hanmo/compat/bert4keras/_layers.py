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
        self.name, self._loaded, self._weights = name, loaded, weights
        self.output = Absent(f"get_layer({name!r}).output", "use a forward hook of torch on model.network")

    def get_weights(self) -> list[Array]:
        """Copy the weights; kernels are [in, out], and beta is the first weight of a norm."""
        return [np.array(weight.detach().float().numpy()) for weight in self._as_in_keras()]

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
        weights = [(name, self._loaded().get_parameter(name)) for name in self._weights]
        tables = ("token.weight", "segment.weight", "position.weight")
        return [weight.T if weight.ndim == 2 and not name.endswith(tables) else weight for name, weight in weights]


def keras_layers(network: Model, settings: Settings, loaded: Callable[[], Model]) -> dict[str, KerasLayer]:
    """Name the layers of a network as bert4keras does; loaded: returns the network once its weights are needed."""
    t5 = settings.name.removeprefix("m").startswith("t5")
    modules = {"Embedding-Token": ["token"]}
    for side, stack in (("encoder", network.config.encoder), ("decoder", network.config.decoder)):
        if stack is not None:
            modules |= _stack(side, stack, f"{side.capitalize()}-" if t5 else "")
    modules |= {
        "Pooler-Dense": ["pooler.dense"],
        "NSP-Proba": ["pooler.nsp"],
        "MLM-Dense": ["output.dense"],
        "MLM-Norm": ["output.norm"],
        "Decoder-Output-LM" if t5 else "MLM-Bias": ["output"],
        "Discriminator-Dense": ["discriminator.dense"],
        "Discriminator-Prediction": ["discriminator.output"],
    }
    present = {name for name, _ in network.named_parameters()}
    layers = {}
    for name, paths in modules.items():
        weights = [f"{path}.{weight}" for path in paths for weight in (_NORM if "-Norm" in name else _DENSE)]
        if weights := [weight for weight in weights if weight in present]:
            layers[name] = KerasLayer(name, loaded, weights)
    return layers


def _stack(side: str, stack: StackConfig, prefix: str) -> dict[str, list[str]]:
    """Name the modules of a stack's layers."""
    modules = {
        f"{prefix}Embedding-{title}": [f"{side}.embedding.{title.lower()}"] for title in ("Segment", "Position", "Norm")
    }
    modules |= {
        f"{prefix}Embedding-Mapping": [f"{side}.embedding.project"],
        f"{prefix}Embedding-Relative-Position": [f"{side}.relative"],
        f"{prefix}Output-Norm": [f"{side}.norm"],
    }
    for i in range(1 if stack.shared_layers else stack.num_layers):
        for sublayer in stack.order:
            ours, (title, parts) = f"{side}.blocks.{i}.{sublayer.kind}", _TITLES[sublayer.kind]
            title = f"{prefix}Transformer-{'' if stack.shared_layers else f'{i}-'}{title}"
            modules[title] = [f"{ours}.{part}" for part in parts]
            norms = [where for where in ("pre", "post") if getattr(sublayer, where)]
            for number, where in enumerate(norms):
                modules[f"{title}-Norm{f'-{number}' if len(norms) > 1 else ''}"] = [f"{ours}_{where}"]
    return modules
