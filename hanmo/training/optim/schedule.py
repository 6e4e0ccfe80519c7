"""Learning-rate schedules, functions from a step to a factor of the learning rate; and parameter groups.

Steps count from 0, as in `torch.optim.lr_scheduler.LambdaLR`:
`LambdaLR(optimizer, functools.partial(warmup_linear, warmup=1_000, total=10_000))`.
"""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hanmo.errors import ConfigError


def warmup_linear(step: float, *, warmup: int, total: int) -> float:
    """Rise linearly to 1 in `warmup` steps, then follow the line that falls from 1 at step 0 to 0 at `total`.

    The line starts at step 0, not at the end of the warm-up, as in BERT and gpt2-ml. The factor is 0 at step 0 and at
    `total`; a run without an idle update uses step + 1 and total + 1.
    Raises ConfigError unless 0 <= warmup <= total and total > 0.
    """
    _check(warmup, total)
    return step / warmup if step < warmup else max(0.0, 1 - step / total)


def warmup_cosine(step: float, *, warmup: int, total: int, floor: float = 0.0) -> float:
    """Rise linearly to 1 in `warmup` steps, then fall along half a cosine to `floor` at `total`.

    Raises ConfigError unless 0 <= warmup <= total, total > 0 and 0 <= floor <= 1.
    """
    _check(warmup, total)
    if not 0 <= floor <= 1:
        raise ConfigError(f"floor of the cosine schedule is {floor}; expected 0 to 1")
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def _check(warmup: int, total: int) -> None:
    if not 0 <= warmup <= total or total <= 0:
        raise ConfigError(f"schedule has warmup={warmup}, total={total}; expected 0 <= warmup <= total and total > 0")


def parameter_groups(
    parameters: Iterable[tuple[str, Tensor]], *, lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Sort trainable parameters into groups of one weight decay each, in order of appearance.

    Only parameters of two axes or more decay, not norms and biases.   parameters: model.named_parameters().
    """
    groups: dict[float, list[Tensor]] = {}
    for _, parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault(weight_decay if parameter.ndim >= 2 else 0.0, []).append(parameter)
    return [{"params": found, "lr": lr, "weight_decay": decay} for decay, found in groups.items()]
