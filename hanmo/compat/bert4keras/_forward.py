"""One forward with bert4keras's inputs, masks and outputs; whole, or from a place that a cache has reached.

Knows the network, the inputs by their names and the activations; nothing of NumPy, batches or what is kept.
"""

from typing import Any

import torch
from torch import Tensor

from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.model import Model
from hanmo.nn.activation import activate
from hanmo.nn.cache import Cache

TOKENS = ("Input-Token", "Decoder-Input-Token", "Input-Segment", "Input-Position")
"""Inputs that hold one number a token of the stack that writes."""


def outputs_of(config: ModelConfig, settings: Settings) -> list[tuple[str, str]]:
    """List a model's outputs, (what, activation), in bert4keras's order; the last hidden state if none was asked for.

    what: "nsp", "pooled", "discriminator", "logits" or "hidden".
    """
    asked: list[tuple[str, str | None]] = [("nsp", settings.nsp)]
    if settings.part != "encoder":
        asked += [
            ("pooled", "linear" if config.pool != "none" and not settings.nsp else None),
            ("discriminator", settings.discriminator),
            ("logits", (settings.mlm or settings.lm) if config.output != "none" else None),
        ]
    found = [(what, activation) for what, activation in asked if activation is not None] or [("hidden", "linear")]
    return found if settings.chosen is None else [found[i] for i in settings.chosen]


def forward(
    network: Model,
    settings: Settings,
    inputs: dict[str, Tensor],
    *,
    start: int = 0,
    cache: Cache | None = None,
    last: bool = False,
) -> list[Tensor]:
    """Run whole inputs, or only their tokens from `start` on, where the cache holds those before.

    last: give the last position alone, [b, 1, …], of outputs that have one for each.
    Returns the outputs, float32.
    """
    inputs = dict(inputs)
    condition = inputs.pop(settings.condition, None) if settings.condition else None
    kinds = outputs_of(network.config, settings)
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
    wanted = "none" if all(what != "logits" for what, _ in kinds) else "last" if last else "all"
    output = network(**arguments, condition=condition, cache=cache, logits=wanted)
    results = []
    for what, activation in kinds:
        tensor: Tensor = getattr(output, what)
        if what == "hidden":
            tensor = (tensor[:, -1:] if last else tensor) * network.config.logit_scale
        results.append(finish(tensor.float(), activation))
    return results


def key_mask(ids: Tensor) -> Tensor:
    """Mask id 0 as a key, but never at the first position: [b, n] bool."""
    mask = ids != 0
    mask[:, 0] = True
    return mask


def finish(x: Tensor, activation: str) -> Tensor:
    """Apply an output's activation, "softmax" over the last axis included."""
    return x.softmax(-1) if activation == "softmax" else activate(x, activation)


def _arguments(network: Model, inputs: dict[str, Tensor], start: int) -> dict[str, Any]:
    ids = inputs.get("Input-Token", inputs.get("Decoder-Input-Token"))
    assert ids is not None
    arguments = {"ids": ids, "mask": key_mask(ids), "positions": inputs.get("Input-Position", _places(ids))}
    if "Input-Segment" in inputs:
        arguments["segments"] = inputs["Input-Segment"]
        if network.main.config.shared_segments:
            # Keras merges the masks of both look-ups in the one embedding, so that segment 0 is masked too.
            arguments["mask"] &= key_mask(arguments["segments"])
    return {name: value[:, start:] for name, value in arguments.items()}


def _encode(network: Model, source: Tensor, condition: Tensor | None) -> Tensor:
    return network.encode(source, mask=key_mask(source), positions=_places(source), condition=condition)


def _places(ids: Tensor) -> Tensor:
    """Count every token, masked ones included, as bert4keras does: [1, n]."""
    return torch.arange(ids.shape[1])[None]
