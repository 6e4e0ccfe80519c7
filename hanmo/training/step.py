"""One update: loss, backward, clip, optimizer step; over parts of a batch and over processes.

Knows a module's parameters, an optimizer, a loss and one batch. Knows no data, no files and no evaluation.

    batch ─► this process's rows ─► part, part … ─► loss ─► backward ─┬─► clip ─► optimizer.step()
                                                                      └─► (in backward) each gradient applied and freed
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from hanmo.nn.stack import Stack
from hanmo.training import distributed
from hanmo.training.args import AUTO, TrainArgs
from hanmo.training.data.stream import Batch, count_predicted, count_rows, cut
from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.optim.averages import ExponentialMovingAverage
from hanmo.training.optim.in_backward import UpdateInBackward
from hanmo.training.optim.muon import MuonWithAdamW
from hanmo.training.optim.schedule import parameter_groups, warmup_cosine, warmup_linear

Loss = Callable[[Any, Any], Tensor]


class Updates:
    """What changes with each step: weights, optimizer state, average, and the losses since the last record.

    make: model → its optimizer, in place of the one that the arguments name.
    Raises ConfigError where arguments exclude each other.
    """

    def __init__(
        self, model: nn.Module, args: TrainArgs, loss: Loss, make: Callable[[Any], Optimizer] | None = None
    ) -> None:
        self.model, self.args = model, args
        first = next(model.parameters())
        self.device = first.device
        for module in model.modules():
            if isinstance(module, Stack):
                module.recompute = args.recompute
        self.optimizer = make(model) if make is not None else make_optimizer(model, args)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.in_backward = self.average = None
        if args.in_backward:
            self.in_backward = UpdateInBackward(self.optimizer, accumulate=args.accumulate, clip_norm=args.clip)
        if args.average:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self.average = ExponentialMovingAverage(trained, momentum=args.average)
        self.sum = torch.zeros((), device=self.device)  # of the losses since the last record
        self.count = 0
        half = args.precision == "mixed" or (args.precision == AUTO and self.device.type == "cuda")
        half = half and first.dtype == torch.float32
        self.half = torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

        def compute(batch: Batch) -> Tensor:
            return loss(model, batch)

        self.loss = torch.compile(compute, dynamic=False) if args.compile else compute

    def make(self, batch: Batch, step: int, total: int | None) -> float:
        """Make update `step` of `total`; return the gradient's norm before clipping, inf or NaN if it was skipped.

        With update in backward only tensors whose gradient is not finite are skipped.
        """
        share = multiplier(self.args, step, total)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        if distributed.world() > 1:
            batch = cut(batch, distributed.world())[distributed.rank()]
        loss = self._backward(batch)
        if self.in_backward is not None:
            applied = self.in_backward.finish()
            norm = applied.norm if not applied.overflowed else math.inf
        else:
            # The norm is read now: a step with a gradient that is not finite would ruin the weights.
            found = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip or math.inf)
            norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
            if math.isfinite(norm):
                self.optimizer.step()
            self.optimizer.zero_grad()
        if math.isfinite(norm):
            self.sum += loss
            self.count += 1
        if self.average is not None and (step + 1) % self.args.average_every == 0:
            if math.isfinite(norm) or self.in_backward is not None:
                self.average.update()
        return norm

    def _backward(self, batch: Batch) -> Tensor:
        """Accumulate the gradient of the mean over the whole batch; return that mean."""
        parts, world = self.args.accumulate, distributed.world()
        if parts == world == 1:
            return self._backward_of(batch)
        pieces = cut(batch, min(parts, count_rows(batch)))
        counts = [count_predicted(piece) for piece in pieces]
        # Parts are weighted by their predicted ids; FSDP averages over processes, hence `world`.
        total = distributed.sum_over_processes(torch.stack(counts).sum())
        total = (total + (total == 0)) / world
        losses = [self._backward_of(piece, count / total) for piece, count in zip(pieces, counts, strict=True)]
        return distributed.sum_over_processes(torch.stack(losses).sum()) / world

    def _backward_of(self, batch: Batch, share: Tensor | None = None) -> Tensor:
        with self.half:
            loss = self.loss(batch)
        loss = loss if share is None else loss * share
        torch.autograd.backward(loss)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides the weights and the optimizer's state."""
        average = self.average.state_dict() if self.average is not None else None
        return {"average": average, "loss": {"sum": self.sum, "count": self.count}}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.sum.copy_(state["loss"]["sum"])
        self.count = state["loss"]["count"]


def make_optimizer(model: nn.Module, args: TrainArgs) -> Optimizer:
    """Make the optimizer that the arguments name; weight decay leaves norms and biases out."""
    args = args.for_loop()
    if args.optimizer == "muon":
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        return MuonWithAdamW(trained, lr=args.lr, betas=args.betas, weight_decay=args.weight_decay)
    groups = parameter_groups(model.named_parameters(), lr=args.lr, weight_decay=args.weight_decay)
    if args.optimizer == "adamw":
        return AdamW(groups, lr=args.lr, betas=args.betas, fused=True)
    return AdaFactor(groups, args.optimizer.removeprefix("adafactor-"), lr=args.lr, seed=args.seed)


def multiplier(args: TrainArgs, step: int, total: int | None) -> float:
    """Return the factor of the learning rate for update `step`, which counts from 0.

    total: updates of the whole run; None before it is known, while the rate rises or stays.
    """
    warmup = args.warmup if total is None else min(args.warmup, total)
    if step + 1 < warmup or total is None or args.schedule == "constant":
        return min(1.0, (step + 1) / max(1, warmup))
    if args.schedule == "linear":
        return args.floor + (1 - args.floor) * warmup_linear(step + 1, warmup=warmup, total=total + 1)
    return warmup_cosine(step + 1, warmup=warmup, total=total + 1, floor=args.floor)


@torch.no_grad()
def scale_outputs(model: nn.Module, num_layers: int) -> None:
    """Scale new output projections of attention and feed-forward by (2 num_layers)^-0.5, as GPT-2 does."""
    for name, parameter in model.named_parameters():
        if name.endswith((".attention.output.weight", ".feed_forward.output.weight")):
            parameter.mul_(1 / math.sqrt(2 * num_layers))
