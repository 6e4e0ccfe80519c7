"""Run a network with bert4keras's inputs, masks and outputs: all positions, or those that a cache does not hold yet."""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.inference.fused.float32 import fused_step
from hanmo.model import Model
from hanmo.nn.activation import activate
from hanmo.nn.cache import Cache

Array = npt.NDArray[Any]

# Inputs with one number for each token of the stack that writes.
TOKENS = ("Input-Token", "Decoder-Input-Token", "Input-Segment", "Input-Position")


def outputs_of(config: ModelConfig, settings: Settings) -> list[tuple[str, str]]:
    """List a model's outputs as (kind, activation) in bert4keras's order; the last hidden state is the default.

    kind: "nsp", "pooled", "discriminator", "logits" or "hidden".
    """
    requested: list[tuple[str, str | None]] = [("nsp", settings.nsp)]
    if settings.part != "encoder":
        requested += [
            ("pooled", "linear" if config.pool != "none" and not settings.nsp else None),
            ("discriminator", settings.discriminator),
            ("logits", (settings.mlm or settings.lm) if config.output != "none" else None),
        ]
    found = [(kind, activation) for kind, activation in requested if activation is not None] or [("hidden", "linear")]
    return found if settings.chosen is None else [found[i] for i in settings.chosen]


class TorchRunner:
    """Runs a network with torch; see `_prefix.Runner`."""

    def __init__(self, network: Model, settings: Settings) -> None:
        self._network, self._settings = network, settings
        network.main.fused_step = fused_step
        stack = network.main.config
        sizes = stack.num_layers * stack.num_heads * (stack.key_dim + stack.head_dim)
        self.token_bytes = sizes * network.token.weight.element_size()

    def stamp(self) -> int:
        return stamp(self._network)

    def new(self, rows: int, capacity: int) -> Cache:
        return self._network.new_cache(rows=rows, capacity=capacity)

    def take(self, kept: Cache, rows: Array | None, capacity: int) -> None:
        index = None if rows is None else torch.from_numpy(rows)
        for tensors in (kept.keys, kept.values):
            for layer, old in enumerate(tensors):
                filled = old[:, :, : kept.length]
                filled = filled if index is None else filled[index]
                new = old.new_empty(*filled.shape[:2], capacity, filled.shape[3])
                new[:, :, : kept.length] = filled
                tensors[layer] = new
        kept.capacity = capacity
        if index is not None:  # the keys and values are in order already
            keys, values, kept.keys, kept.values = kept.keys, kept.values, [], []
            kept.reorder(index)
            kept.keys, kept.values = keys, values

    def run(
        self, inputs: dict[str, Array], *, start: int = 0, kept: Cache | None = None, last: bool = False
    ) -> list[Array]:
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        outputs = _forward(self._network, self._settings, tensors, start=start, cache=kept, last=last)
        return [output.numpy() for output in outputs]


def stamp(network: Model) -> int:
    """Return a number that changes when a parameter is replaced or written to."""
    return hash(tuple((id(parameter), parameter._version) for parameter in network.parameters()))


def key_mask(ids: Any) -> Any:
    """Mask id 0 as a key, except at the first position; ids: [rows, tokens], NumPy or torch."""
    mask = ids != 0
    mask[:, 0] = True
    return mask


def finish(x: Tensor, activation: str) -> Tensor:
    """Apply an output's activation; "softmax" is over the last axis."""
    return x.softmax(-1) if activation == "softmax" else activate(x, activation)


def _forward(
    network: Model,
    settings: Settings,
    inputs: dict[str, Tensor],
    *,
    start: int,
    cache: Cache | None,
    last: bool,
) -> list[Tensor]:
    condition = inputs.pop(settings.condition, None) if settings.condition else None
    dtype = network.token.weight.dtype
    condition = None if condition is None else condition.to(dtype)
    if settings.part == "encoder":
        hidden = _encode(network, inputs["Encoder-Input-Token"], condition)
        return [(hidden[:, -1:] if last else hidden).float()]
    arguments = _arguments(network, inputs, start)
    if start == 0 and "Input-Context" in inputs:
        arguments["memory"] = inputs["Input-Context"].to(dtype)
    if start == 0 and "Encoder-Input-Token" in inputs:
        source = inputs["Encoder-Input-Token"]
        arguments |= {"memory": _encode(network, source, condition), "source_mask": key_mask(source)}
    outputs = outputs_of(network.config, settings)
    logits = "none" if all(kind != "logits" for kind, _ in outputs) else "last" if last else "all"
    output = network(**arguments, condition=condition, cache=cache, logits=logits)
    results = []
    for kind, activation in outputs:
        tensor: Tensor = getattr(output, kind)
        if kind == "hidden":
            tensor = (tensor[:, -1:] if last else tensor) * network.config.logit_scale
        results.append(finish(tensor.float(), activation))
    return results


def _arguments(network: Model, inputs: dict[str, Tensor], start: int) -> dict[str, Any]:
    ids = inputs["Input-Token"] if "Input-Token" in inputs else inputs["Decoder-Input-Token"]
    arguments = {"ids": ids, "mask": key_mask(ids), "positions": inputs.get("Input-Position", _positions(ids))}
    if "Input-Segment" in inputs:
        arguments["segments"] = inputs["Input-Segment"]
        if network.main.config.shared_segments:
            # Keras combines the masks of both look-ups in the shared embedding, so that segment 0 is masked too.
            arguments["mask"] &= key_mask(arguments["segments"])
    return {name: value[:, start:] for name, value in arguments.items()}


def _encode(network: Model, source: Tensor, condition: Tensor | None) -> Tensor:
    return network.encode(source, mask=key_mask(source), positions=_positions(source), condition=condition)


def _positions(ids: Tensor) -> Tensor:
    """Count every token, masked ones included, as bert4keras does: [1, tokens]."""
    return torch.arange(ids.shape[1])[None]
