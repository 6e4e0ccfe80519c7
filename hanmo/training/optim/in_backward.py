"""Update in backward: each gradient is applied and freed as soon as it exists, so that they are never all held.

Knows hooks and any optimizer that treats its tensors one by one (AdaFactor, AdamW, SGD …); knows no model and no loop.
The optimizer stays the one object that holds learning rates and state, so schedulers and checkpoints see nothing new.
"""

import math
import threading
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from hanmo.errors import ConfigError
from hanmo.training.distributed import is_sharded

__all__ = ["Applied", "UpdateInBackward", "UpdatesOne", "gradient_bytes"]


@dataclass(frozen=True)
class Applied:
    """What one backward pass updated.

    updated: tensors.   overflowed: those among them whose gradient held inf or NaN and was taken as zero.
    norm: Euclidean norm of all other gradients together.
    """

    updated: int
    overflowed: int
    norm: float


@runtime_checkable
class UpdatesOne(Protocol):
    """An optimizer that can update one parameter by itself, guarded and without a step's cost, as AdaFactor can."""

    def update_one(self, parameter: Tensor, group: dict[str, Any], *, scale: float) -> Tensor:
        """Update from the gradient divided by scale, taken as zero if it is not finite; return its norm."""
        ...


class UpdateInBackward:
    """Make `loss.backward()` update the parameters of an optimizer, in place of `optimizer.step()`.

        updates = UpdateInBackward(AdaFactor(model.parameters()))
        for batch in batches:
            loss(model, batch).backward()   # parameters change and gradients vanish in here
            applied = updates.finish()      # once after each backward
            scheduler.step()

    A parameter used in several places is updated once, when its whole gradient exists. A gradient with inf or NaN is
    taken as zero and counted, so that no moment is poisoned. `scale` is the factor the loss was multiplied by against
    half-precision underflow; gradients are divided by it, and it may be changed between passes.
    """

    def __init__(
        self, optimizer: Optimizer, *, accumulate: int = 1, clip_norm: float | None = None, scale: float = 1.0
    ) -> None:
        """Put a hook on every trainable parameter of the optimizer.

        accumulate, clip_norm: what the training was asked for; taken only to be refused.
        Raises ConfigError if accumulate is not 1 or clip_norm not None, for both need whole gradients, and if a
        parameter is cut over processes, for its gradient comes by another way.
        """
        self.optimizer = optimizer
        self.scale = scale
        self._lock = threading.Lock()  # on several devices backward runs in several threads
        self._norms: dict[Tensor, Tensor] = {}
        self._group: dict[Tensor, int] = {}
        for number, group in enumerate(optimizer.param_groups):
            self._group |= dict.fromkeys((p for p in group["params"] if p.requires_grad), number)
        self._refuse(accumulate, clip_norm)
        self._handles = [
            p.register_post_accumulate_grad_hook(self._apply)  # type: ignore[no-untyped-call]
            for p in self._group
        ]

    def finish(self) -> Applied:
        """Say what the backward pass updated, and be ready for the next; the only wait for the device."""
        norms = list(self._norms.values())
        self._norms.clear()
        values = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist() if norms else []
        finite = [value for value in values if math.isfinite(value)]
        return Applied(len(values), len(values) - len(finite), math.hypot(*finite))

    def close(self) -> None:
        """Take the hooks away; backward collects gradients again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _apply(self, parameter: Tensor) -> None:
        grad = parameter.grad
        assert grad is not None  # the hook runs after the gradient was set
        with self._lock, torch.no_grad():
            if parameter in self._norms:
                raise ConfigError(
                    f"a parameter of shape {tuple(parameter.shape)} got a second gradient before finish(); "
                    f"call finish() after each backward; to add up gradients of several passes, {self._cost()}"
                )
            if isinstance(self.optimizer, UpdatesOne):
                group = self.optimizer.param_groups[self._group[parameter]]
                self._norms[parameter] = self.optimizer.update_one(parameter, group, scale=self.scale)
                self.optimizer._opt_called = True  # type: ignore[attr-defined]  # else torch's schedulers warn
            else:
                self._norms[parameter] = self._step_one(parameter, grad)
        parameter.grad = None

    def _step_one(self, parameter: Tensor, grad: Tensor) -> Tensor:
        """Guard a gradient, and let the optimizer step with this one parameter as all it has."""
        if self.scale != 1:
            grad.div_(self.scale)
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        if norm.device.type != "cpu" or not math.isfinite(norm):
            grad.masked_fill_(~norm.isfinite(), 0)  # on a device without asking, for asking would wait
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**groups[self._group[parameter]], "params": [parameter]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        return norm

    def _refuse(self, accumulate: int, clip_norm: float | None) -> None:
        if accumulate != 1:
            raise ConfigError(f"accumulate={accumulate} cannot be had with update in backward: {self._cost()}")
        if clip_norm is not None:
            raise ConfigError(
                f"clip_norm={clip_norm} over all gradients cannot be had with update in backward: {self._cost()}; "
                "AdaFactor clips each tensor's update by its own rule"
            )
        for parameter in self._group:
            if is_sharded(parameter):
                raise ConfigError(
                    f"a parameter of shape {tuple(parameter.shape)} is cut over processes; update in backward takes "
                    "whole ones; call optimizer.step() instead, each process holds only its share of the gradients"
                )

    def _cost(self) -> str:
        cost = gradient_bytes(self.optimizer)
        return f"it needs whole gradients, {cost:,} bytes ({cost / 2**30:.2f} GiB) more; use optimizer.step() for that"


def gradient_bytes(optimizer: Optimizer) -> int:
    """Give the bytes that whole gradients of an optimizer's trainable parameters take."""
    parameters = {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    return sum(p.numel() * p.element_size() for p in parameters)
