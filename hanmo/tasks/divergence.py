"""How far the outputs of a task are from those of another pass or another network.

Knows logits and what they are logits of; knows no task and no network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_LOWEST = -1e4  # stands for -inf, whose differences are NaN


@dataclass(frozen=True)
class Logits:
    """Outputs as the parameters of distributions.

    values: [b, …, classes].   distribution: "categorical", a softmax over the last axis; "bernoulli", a sigmoid of
    each; or "normal", means of variance 1.   mask: [b, …] without the last axis, True where a place counts.
    """

    values: Tensor
    distribution: str = "categorical"
    mask: Tensor | None = None


def divergence(
    outputs: Sequence[Logits], target: Sequence[Logits], *, temperature: float = 1.0, floor: float = 0.0
) -> Tensor:
    """Return the Kullback-Leibler divergence of outputs from a target, KL(target ‖ outputs), of each window: [b].

    It is summed over classes and averaged over the places of a window.
    temperature: divides logits.   floor: smaller probabilities of a categorical distribution count as this, as in
    Keras's loss with 1e-7; the gradient there is 0.
    """
    parts = [_divergence(one, other, temperature, floor) for one, other in zip(outputs, target, strict=True)]
    return torch.stack(parts).sum(0)


def _divergence(outputs: Logits, target: Logits, temperature: float, floor: float) -> Tensor:
    dtype = torch.promote_types(outputs.values.dtype, torch.float32)
    p, q = (each.values.to(dtype).clamp(min=_LOWEST) for each in (outputs, target))
    if outputs.distribution == "normal":
        found = (p - q) ** 2 / 2
    elif outputs.distribution == "bernoulli":
        p, q = p / temperature, q / temperature
        found = q.sigmoid() * (F.logsigmoid(q) - F.logsigmoid(p))
        found = found + (-q).sigmoid() * (F.logsigmoid(-q) - F.logsigmoid(-p))
    else:
        p, q = ((each / temperature).log_softmax(-1) for each in (p, q))
        if floor:
            p, q = p.clamp(min=math.log(floor)), q.clamp(min=math.log(floor))
        found = q.exp() * (q - p)
    places = found.sum(-1).flatten(1) if found.ndim > 2 else found.sum(-1, keepdim=True)
    if outputs.mask is None:
        return places.mean(1)
    mask = outputs.mask.reshape(places.shape).to(dtype)
    return (places * mask).sum(1) / mask.sum(1).clamp(min=1)
