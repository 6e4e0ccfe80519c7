"""The moving average of the weights.

torch's `AveragedModel` averages in the parameters' dtype and copies the module; this one averages bfloat16 and sharded
parameters in float32.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hanmo.errors import ConfigError, TensorMismatch


class ExponentialMovingAverage:
    """Keep the bias-corrected moving average of parameters, in float32: 4 bytes a parameter element.

        average.update()          # after each optimizer.step()
        with average.applied():   # evaluate or save

    momentum: share of the past kept at each update.   device: of the averages; None is that of the parameters.
    Raises ConfigError if momentum is not in [0, 1).
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, momentum: float = 0.999, device: torch.device | str | None = None
    ) -> None:
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum of the moving average is {momentum}; expected 0 or more and less than 1")
        self._parameters = list(parameters)
        self._momentum, self._updates = momentum, 0
        self._averages = [
            torch.zeros_like(parameter, dtype=torch.float32, device=device, requires_grad=False)
            for parameter in self._parameters
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the averages."""
        self._updates += 1
        # The weights m^k so far sum to (1 - m^n) / (1 - m); dividing by that is the bias correction.
        share = (1 - self._momentum) / (1 - self._momentum**self._updates)
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter.detach().to(average.device, torch.float32), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters, and restore the parameters at the end.

        Raises ConfigError before the first update.
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
        """Return the averages and their count; tensors are not copied."""
        return {"updates": self._updates, "averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises TensorMismatch if the shapes are not the parameters'."""
        found, expected = ([tuple(tensor.shape) for tensor in some] for some in (state["averages"], self._averages))
        if found != expected:
            at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
            where = f"{len(found)} tensors, expected {len(expected)}"
            if at is not None:
                where = f"shape {found[at]} at place {at}, expected {expected[at]}"
            raise TensorMismatch(f"saved moving average has {where}; it belongs to another model")
        _fill(self._averages, state["averages"])
        self._updates = state["updates"]


@torch.no_grad()
def _fill(targets: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
