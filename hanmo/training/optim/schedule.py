"""Learning-rate schedules, functions from a step to a multiplier of the learning rate; and parameter groups.

Steps count from 0, as `torch.optim.lr_scheduler.LambdaLR` counts them, so one
writes `LambdaLR(optimizer, functools.partial(warmup_linear, warmup=1_000, total=10_000))`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from hanmo.errors import ConfigError

__all__ = [
    "depth_multipliers",
    "is_matrix",
    "parameter_groups",
    "piecewise_linear",
    "relative_step",
    "warmup_cosine",
    "warmup_linear",
]


def piecewise_linear(step: float, points: Mapping[int, float]) -> float:
    """Interpolate a multiplier between the steps at which it is given.

    points: {step: multiplier}; before the first one it rises from 0 at step 0, after the last it stays. So
    {1000: 1, 2000: 0.1} warms up for 1,000 steps, sinks to a tenth until 2,000 and keeps that.
    Raises ConfigError if there is no point or a step is negative.   Source: bert4keras, `piecewise_linear`.
    """
    if not points or min(points) < 0:
        raise ConfigError(
            f"schedule points are {dict(points)}; expected at least one {{step: multiplier}}, steps from 0 up"
        )
    whole = {0: 0.0, **points}
    steps = sorted(whole)
    after = bisect_right(steps, step)
    if after == len(steps):
        return whole[steps[-1]]
    start, end = steps[after - 1], steps[after]
    return whole[start] + (whole[end] - whole[start]) * (step - start) / (end - start)


def warmup_linear(step: float, *, warmup: int, total: int) -> float:
    """Rise linearly to 1 in `warmup` steps, then follow the line that sinks from 1 at step 0 to 0 at `total`.

    The line starts at step 0, not at the end of the warm-up: that is how BERT and gpt2-ml define it. The formula is 0
    at step 0 and at `total`; a run that wants no idle update asks for step + 1 with total + 1.
    Raises ConfigError unless 0 <= warmup <= total and total > 0.
    """
    _check(warmup, total)
    return step / warmup if step < warmup else max(0.0, 1 - step / total)


def warmup_cosine(step: float, *, warmup: int, total: int, floor: float = 0.0) -> float:
    """Rise linearly to 1 in `warmup` steps, then sink along half a cosine to `floor` at `total`.

    floor: multiplier at and after `total`, 0 to 1.
    Raises ConfigError unless 0 <= warmup <= total, total > 0 and 0 <= floor <= 1.
    """
    _check(warmup, total)
    if not 0 <= floor <= 1:
        raise ConfigError(f"floor of the cosine schedule is {floor}; expected 0 to 1")
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def relative_step(step: int) -> float:
    """Give AdaFactor's relative step min(1/sqrt(step + 1), 0.01).

    Used with a learning rate of 1, or of 0.05 where the update is not multiplied by the parameter's scale.
    Source: bert4keras with learning_rate=None; https://arxiv.org/abs/1804.04235.
    """
    return min(1 / math.sqrt(step + 1), 0.01)


def _check(warmup: int, total: int) -> None:
    if not 0 <= warmup <= total or total <= 0:
        raise ConfigError(f"schedule has warmup={warmup}, total={total}; expected 0 <= warmup <= total and total > 0")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Say whether a parameter has two axes or more: all but norms and biases, the ones that weight decay leaves out."""
    return parameter.ndim >= 2


def parameter_groups(
    parameters: Iterable[tuple[str, Tensor]],
    *,
    lr: float,
    weight_decay: float = 0.0,
    decays: Callable[[str, Tensor], bool] = is_matrix,
    multipliers: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Sort trainable parameters into groups of one learning rate and one weight decay each.

    parameters: model.named_parameters().   decays: (name, parameter) -> whether weight_decay is meant for it.
    multipliers: {part of a name: factor of lr}; where several parts fit, all factors count.
    Returns groups in order of appearance. Raises ConfigError if a multiplier fits no parameter.
    """
    multipliers = multipliers or {}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    unused = set(multipliers)
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        rate = lr
        for part, factor in multipliers.items():
            if part in name:
                unused.discard(part)
                rate *= factor
        groups.setdefault((rate, weight_decay if decays(name, parameter) else 0.0), []).append(parameter)
    if unused:
        raise ConfigError(
            f"learning-rate multipliers for {sorted(unused)} fit no trainable parameter; "
            "expected parts of the names in model.named_parameters()"
        )
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def depth_multipliers(prefix: str, num_layers: int, *, factor: float) -> dict[str, float]:
    """Make multipliers that shrink by `factor` a block from the output down: {"<prefix>.0.": factor^num_layers, …}.

    prefix: name of the list of blocks, such as "decoder.blocks".   num_layers: its length.
    Raises ConfigError if num_layers is less than 1 or factor not above 0.
    """
    if num_layers < 1 or factor <= 0:
        raise ConfigError(
            f"depth_multipliers got num_layers={num_layers}, factor={factor}; expected num_layers >= 1 and factor > 0"
        )
    return {f"{prefix}.{index}.": factor ** (num_layers - index) for index in range(num_layers)}
