"""One update after the other: loss, backward, clip, step; over parts of a batch and over processes.

Knows a model, an optimizer, a loss and one batch. Knows no data, no files and no evaluation.

    batch ─► this process's rows ─► part, part … ─► loss ─► backward ─┬─► clip ─► optimizer.step()
                                                                      └─► (in backward) each gradient applied and freed
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from hanmo.model import Model
from hanmo.training import distributed
from hanmo.training.args import Settings, make_optimizer, multiplier
from hanmo.training.data.stream import Batch, count_predicted, count_rows, cut
from hanmo.training.optim.averages import ExponentialMovingAverage
from hanmo.training.optim.in_backward import UpdateInBackward

__all__ = ["Loss", "Updates"]

Loss = Callable[[Model, Any], Tensor]


class Updates:
    """Everything that changes when a step is made: weights, moments, average, and the losses since the last record."""

    def __init__(
        self, model: Model, settings: Settings, loss: Loss, make: Callable[[Model], Optimizer] | None = None
    ) -> None:
        """Make the optimizer that the settings name, or by `make`.

        Raises ConfigError where settings exclude each other.
        """
        self.model, self.settings = model, settings
        self.device = model.token.weight.device
        for stack in (model.encoder, model.decoder):
            if stack is not None:
                stack.recompute = settings.recompute
        self.optimizer = make(model) if make is not None else make_optimizer(model, settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.in_backward = None
        if settings.in_backward:
            self.in_backward = UpdateInBackward(self.optimizer, accumulate=settings.accumulate, clip_norm=settings.clip)
        self.average = None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if settings.average:
            self.average = ExponentialMovingAverage(trained, momentum=settings.average)
        self.sum = torch.zeros((), device=self.device)  # of the losses since the last record
        self.count = 0
        half = settings.bfloat16 if settings.bfloat16 is not None else self.device.type == "cuda"
        half = half and model.token.weight.dtype == torch.float32
        self.half = torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

        def compute(batch: Batch) -> Tensor:
            return loss(model, batch)

        self.loss = torch.compile(compute, dynamic=False) if settings.compile else compute

    def make(self, batch: Batch, step: int, total: int | None) -> float:
        """Make update `step` of `total`; return the gradient's norm before clipping, inf or NaN if it was left out.

        With update in backward only the tensors whose gradient was not finite are left out.
        """
        share = multiplier(self.settings, step, total)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        if distributed.world() > 1:
            batch = cut(batch, distributed.world())[distributed.rank()]
        loss = self._backward(batch)
        if self.in_backward is not None:
            applied = self.in_backward.finish()
            norm = applied.norm if not applied.overflowed else math.inf
        else:
            norm = self._step()
        if math.isfinite(norm):
            self.sum += loss
            self.count += 1
        if self.average is not None and (step + 1) % self.settings.average_every == 0:
            if math.isfinite(norm) or self.in_backward is not None:
                self.average.update()
        return norm

    def state(self) -> dict[str, Any]:
        """Give what going on needs beside the weights and the optimizer's state."""
        average = self.average.state_dict() if self.average is not None else None
        return {"average": average, "loss": {"sum": self.sum, "count": self.count}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.sum.copy_(state["loss"]["sum"])
        self.count = state["loss"]["count"]

    def _backward(self, batch: Batch) -> Tensor:
        """Collect the gradient of the mean over the whole batch; return that mean."""
        parts, world = self.settings.accumulate, distributed.world()
        if parts == world == 1:
            return self._backward_of(batch, None)
        pieces = cut(batch, min(parts, count_rows(batch)))
        counts = [count_predicted(piece) for piece in pieces]
        # Means of parts count as much as they have ids; FSDP takes the mean over processes, hence `world`.
        whole = distributed.sum_over_processes(torch.stack(counts).sum()).clamp(min=1) / world
        losses = [self._backward_of(piece, count / whole) for piece, count in zip(pieces, counts, strict=True)]
        return distributed.sum_over_processes(torch.stack(losses).sum()) / world

    def _backward_of(self, batch: Batch, share: Tensor | None) -> Tensor:
        with self.half:
            loss = self.loss(batch)
        loss = loss if share is None else loss * share
        torch.autograd.backward(loss)
        return loss.detach()

    def _step(self) -> float:
        limit = self.settings.clip or math.inf
        # Read at once: a step with a gradient that is not finite would spoil the weights for good.
        found = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm
