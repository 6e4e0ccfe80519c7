"""What a training run is told, and what follows from it alone: the optimizer and the learning rate of each step.

Knows numbers and parameters; knows no data and no loop.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from hanmo.errors import ConfigError
from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.optim.muon import MuonWithAdamW
from hanmo.training.optim.schedule import parameter_groups, warmup_cosine, warmup_linear

__all__ = ["OPTIMIZERS", "SCHEDULES", "Settings", "make_optimizer", "multiplier", "scale_outputs"]

OPTIMIZERS = ("adamw", "muon", "adafactor-gpt2-ml", "adafactor-bert4keras")
SCHEDULES = ("cosine", "linear", "constant")
# What may differ when a run is resumed: none of these changes what a step does.
_FREE = ("steps", "minutes", "early_stopping", "evaluate_every", "save_every", "log_every", "compile")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Say how to train; give `steps`, or `minutes` for as many steps as fit.

    minutes: of the whole run, evaluations and saving included; the number of steps is fixed once the speed is known.
    lr: the highest, after `warmup` steps.   floor: share of it at the end.   weight_decay: of matrices only.
    clip: largest norm of the whole gradient, or None.   average: momentum of a moving average of the weights, taken
    every `average_every` steps and tried at the end; 0 is off.
    accumulate: parts that a batch is cut into, one after the other; the update is that of the whole batch.
    in_backward: apply and free each gradient as soon as it exists (see optim/in_backward.py); needs clip=None.
    recompute: compute each block again in backward instead of keeping what lies inside it.
    early_stopping: evaluations in a row without a better score after which the run ends; None never does.
    bfloat16: compute matrices in it (autocast), the weights staying float32; None does so on a GPU. Of weights that
    are bfloat16 themselves it changes nothing.
    Raises ConfigError for a value outside its range.
    """

    steps: int | None = None
    minutes: float | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    schedule: str = "cosine"
    warmup: int = 200
    floor: float = 0.0
    clip: float | None = 1.0
    average: float = 0.0
    average_every: int = 8
    accumulate: int = 1
    in_backward: bool = False
    recompute: bool = False
    early_stopping: int | None = None
    bfloat16: bool | None = None
    compile: bool = False
    seed: int = 0
    evaluate_every: int = 1000
    save_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError(f"steps is {self.steps}, minutes is {self.minutes}; give one of them")
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        above = ("steps", "minutes", "lr", "clip", "accumulate", "early_stopping")
        for name in (*above, "average_every", "evaluate_every", "save_every", "log_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; expected a number above 0")
        if self.warmup < 0 or self.weight_decay < 0:
            raise ConfigError(f"warmup is {self.warmup}, weight_decay is {self.weight_decay}; expected 0 or more")
        for name, share in (("floor", self.floor), ("average", self.average)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} is {share}; expected 0 or more and less than 1")

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Name what differs from another run's settings, of what must be equal to go on from it."""
        own, default = asdict(self), {field.name: field.default for field in fields(self)}  # older runs name fewer
        return [name for name in own if name not in _FREE and own[name] != other.get(name, default[name])]


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """Make the optimizer that the settings name; weight decay leaves norms and biases out."""
    if settings.optimizer == "muon":
        return MuonWithAdamW(
            [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad],
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
    groups = parameter_groups(model.named_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.optimizer == "adamw":
        on_gpu = groups[0]["params"][0].is_cuda
        return AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True if on_gpu else None)
    return AdaFactor(groups, settings.optimizer.removeprefix("adafactor-"), lr=settings.lr, seed=settings.seed)


def multiplier(settings: Settings, step: int, total: int | None) -> float:
    """Give the share of the learning rate for update `step`, which counts from 0.

    total: updates of the whole run; None before it is known, when the rate rises or stays.
    """
    warmup = settings.warmup if total is None else min(settings.warmup, total)
    if step + 1 < warmup or total is None or settings.schedule == "constant":
        return min(1.0, (step + 1) / max(1, warmup))
    if settings.schedule == "linear":
        return settings.floor + (1 - settings.floor) * warmup_linear(step + 1, warmup=warmup, total=total + 1)
    return warmup_cosine(step + 1, warmup=warmup, total=total + 1, floor=settings.floor)


@torch.no_grad()
def scale_outputs(model: nn.Module, num_layers: int) -> None:
    """Shrink fresh output projections of attention and feed-forward by (2 num_layers)^-0.5, as GPT-2 does.

    Then the sum of all sub-layers is about as large as one at the start, whatever the num_layers.
    """
    for name, parameter in model.named_parameters():
        if name.endswith((".attention.output.weight", ".feed_forward.output.weight")):
            parameter.mul_(1 / math.sqrt(2 * num_layers))
