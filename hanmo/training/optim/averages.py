"""Means over steps: of the weights (moving average, lookahead) and of the gradients (accumulation).

Knows parameters and, for accumulation, an optimizer; knows no model. bert4keras's optimizers gave these three; two of
them are mended here: its lookahead began from zeros and so halved every weight at the first step, and its accumulation
made the first update from a zero gradient, one round late ever after.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hanmo.errors import ConfigError, TensorMismatch

__all__ = ["Accumulation", "ExponentialMovingAverage", "Lookahead"]


class ExponentialMovingAverage:
    """Keep the bias-corrected moving average of parameters, in float32, and lend it to the model.

    average = ExponentialMovingAverage(model.parameters())
    ...                       # optimizer.step()
    average.update()
    with average.applied():   # evaluate or save
        ...
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, momentum: float = 0.999, device: torch.device | str | None = None
    ) -> None:
        """Make room for the averages: 4 bytes a parameter.

        momentum: share of the past kept at each update.
        device: where the averages lie; None is beside the parameters.
        Raises ConfigError if momentum is not in [0, 1).
        """
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum of the moving average is {momentum}; expected 0 or more and less than 1")
        self._parameters = list(parameters)
        self._momentum = momentum
        self._updates = 0
        self._averages = [
            torch.zeros_like(parameter, dtype=torch.float32, device=device, requires_grad=False)
            for parameter in self._parameters
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the averages."""
        self._updates += 1
        # The sum of the weights m^k up to now is (1 - m^n) / (1 - m): dividing by it is the bias correction.
        share = (1 - self._momentum) / (1 - self._momentum**self._updates)
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter.detach().to(average.device, torch.float32), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters, and the parameters' own values back at the end.

        Raises ConfigError if there was no update yet.
        """
        if self._updates == 0:
            raise ConfigError("moving average has 0 updates; call update() after an optimizer step first")
        with torch.no_grad():
            own = [p.detach().to(a.device, copy=True) for p, a in zip(self._parameters, self._averages, strict=True)]
        try:
            _fill(self._parameters, self._averages)
            yield
        finally:
            _fill(self._parameters, own)

    def state_dict(self) -> dict[str, Any]:
        """Give the averages and their count; tensors are not copied."""
        return {"updates": self._updates, "averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises TensorMismatch if the shapes are not the parameters'."""
        _same_shapes("moving average", state["averages"], self._averages)
        _fill(self._averages, state["averages"])
        self._updates = state["updates"]


class Lookahead:
    """Every few steps, go back part of the way to where the last such step ended.

    Call `update` after each optimizer step. Source: https://arxiv.org/abs/1907.08610.
    """

    def __init__(self, parameters: Iterable[Tensor], *, every: int = 5, share: float = 0.5) -> None:
        """Copy the parameters as the first slow weights.

        every: fast steps to a slow one, 1 or more (the paper's k).   share: of the way kept, in (0, 1] (its alpha).
        Raises ConfigError if either is out of range.
        """
        if every < 1 or not 0 < share <= 1:
            raise ConfigError(f"lookahead has every={every}, share={share}; expected every >= 1 and 0 < share <= 1")
        self._parameters = list(parameters)
        self._every, self._share = every, share
        self._steps = 0
        self._slow = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> bool:
        """Count a fast step; at every `every`-th move slow and fast weights together. Return whether they moved."""
        self._steps += 1
        if self._steps % self._every:
            return False
        for slow, parameter in zip(self._slow, self._parameters, strict=True):
            slow.lerp_(parameter.detach(), self._share)
            parameter.copy_(slow)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Give the slow weights and the count of steps; tensors are not copied."""
        return {"steps": self._steps, "slow": self._slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises TensorMismatch if the shapes are not the parameters'."""
        _same_shapes("lookahead", state["slow"], self._slow)
        _fill(self._slow, state["slow"])
        self._steps = state["steps"]


class Accumulation:
    """Update from the mean gradient of several backward passes.

    accumulation = Accumulation(optimizer, every=4)
    for batch in batches:
        loss(model, batch).backward()
        if accumulation.step():   # True after the 4th, 8th …
            scheduler.step()
    """

    def __init__(self, optimizer: Optimizer, *, every: int) -> None:
        """Start counting. Raises ConfigError if `every` is less than 1."""
        if every < 1:
            raise ConfigError(f"accumulation over {every} passes; expected 1 or more")
        self._optimizer, self._every = optimizer, every
        self._passes = 0

    @torch.no_grad()
    def step(self) -> bool:
        """Count a backward pass; at every `every`-th update and clear the gradients. Return whether it updated."""
        self._passes += 1
        if self._passes % self._every:
            return False
        if self._every > 1:
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.div_(self._every)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return True


@torch.no_grad()
def _fill(targets: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def _same_shapes(what: str, given: list[Tensor], wanted: list[Tensor]) -> None:
    found, expected = ([tuple(tensor.shape) for tensor in tensors] for tensors in (given, wanted))
    if found != expected:
        at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        where = f"{len(found)} tensors, expected {len(expected)}"
        if at is not None:
            where = f"shape {found[at]} at place {at}, expected {expected[at]}"
        raise TensorMismatch(f"saved {what} has {where}; it belongs to another model")
