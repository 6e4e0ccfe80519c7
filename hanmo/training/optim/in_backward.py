"""Update in backward: each gradient is applied and freed as soon as it exists, so they never exist all at once.

For any optimizer that treats its tensors one by one (AdaFactor, AdamW, SGD). The optimizer keeps learning rates and
state, so schedulers and checkpoints work as usual.
"""

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from hanmo.errors import ConfigError
from hanmo.training.distributed import is_sharded
from hanmo.training.optim.adafactor import AdaFactor


@dataclass(frozen=True)
class Applied:
    """What one backward pass updated.

    updated: number of tensors.   overflowed: those whose gradient held inf or NaN and was taken as zero.
    norm: Euclidean norm of all other gradients together.
    """

    updated: int
    overflowed: int
    norm: float


class UpdateInBackward:
    """Make `loss.backward()` update the parameters of an optimizer, in place of `optimizer.step()`.

        updates = UpdateInBackward(AdaFactor(model.parameters()))
        for batch in batches:
            loss(model, batch).backward()   # updates parameters and frees gradients
            applied = updates.finish()      # once after each backward
            scheduler.step()

    A parameter used in several places is updated once, when its gradient is complete. A gradient with inf or NaN is
    taken as zero and counted, so that it does not spoil the optimizer's state.
    Raises ConfigError if accumulate is not 1 or clip_norm not None, which need all gradients, and for a parameter that
    is sharded over processes.
    """

    def __init__(self, optimizer: Optimizer, *, accumulate: int = 1, clip_norm: float | None = None) -> None:
        self.optimizer = optimizer
        self._lock = threading.Lock()  # on several devices backward runs in several threads
        self._norms: dict[Tensor, Tensor] = {}
        self._group: dict[Tensor, int] = {}
        for number, group in enumerate(optimizer.param_groups):
            self._group |= dict.fromkeys((p for p in group["params"] if p.requires_grad), number)
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
        for parameter in self._group:
            parameter.register_post_accumulate_grad_hook(self._apply)  # type: ignore[no-untyped-call]

    def finish(self) -> Applied:
        """Return what the backward pass updated and reset; the only host synchronisation."""
        norms = list(self._norms.values())
        self._norms.clear()
        values = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist() if norms else []
        finite = [value for value in values if math.isfinite(value)]
        return Applied(len(values), len(values) - len(finite), math.hypot(*finite))

    def _apply(self, parameter: Tensor) -> None:
        grad = parameter.grad
        assert grad is not None  # the hook runs after the gradient was set
        with self._lock, torch.no_grad():
            if parameter in self._norms:
                raise ConfigError(
                    f"a parameter of shape {tuple(parameter.shape)} got a second gradient before finish(); "
                    f"call finish() after each backward; to add up gradients of several passes, {self._cost()}"
                )
            if isinstance(self.optimizer, AdaFactor):
                group = self.optimizer.param_groups[self._group[parameter]]
                norm = self.optimizer.update_one(parameter, group, guarded=True)
                assert norm is not None  # `update_one` returns it if guarded
                self._norms[parameter] = norm
                self.optimizer._opt_called = True  # type: ignore[attr-defined]  # else torch's schedulers warn
            else:
                self._norms[parameter] = self._step_one(parameter, grad)
        parameter.grad = None

    def _step_one(self, parameter: Tensor, grad: Tensor) -> Tensor:
        """Step with this one parameter as the optimizer's only one; a gradient that is not finite becomes zero."""
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        if norm.device.type != "cpu" or not math.isfinite(norm):
            grad.masked_fill_(~norm.isfinite(), 0)  # on a GPU without host synchronisation
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**groups[self._group[parameter]], "params": [parameter]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        return norm

    def _cost(self) -> str:
        cost = sum(parameter.numel() * parameter.element_size() for parameter in self._group)
        return f"it needs whole gradients, {cost:,} bytes ({cost / 2**30:.2f} GiB) more; use optimizer.step() for that"
