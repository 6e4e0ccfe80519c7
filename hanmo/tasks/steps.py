"""What every step wrapper shares: a step wrapper turns the loss of a task into another one to train on.

loss(network, batch) → scalar         the loss of a task, `task_loss`
wrapper(loss, network) → loss         FGM, R-Drop, distillation …; see wrappers.py

Knows losses, networks and the arguments of the loop. Knows no wrapper.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from hanmo.tasks.task import Batch, TaskNetwork, weighted_mean
from hanmo.training.args import TrainArgs
from hanmo.training.score import evaluating
from hanmo.training.step import Loss


class StepWrapper(ABC):
    """A training trick that any kind of task takes; called with a loss and the network, it returns a loss."""

    @abstractmethod
    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        """Return the loss to train on. Raises ConfigError for a network that the wrapper cannot train."""

    def check(self, args: TrainArgs) -> None:  # noqa: B027
        """Raise ConfigError for arguments of the loop that exclude the wrapper."""


def task_loss(network: TaskNetwork, batch: Batch) -> Tensor:
    """Return the mean loss of a batch's windows by their weight: a float32 scalar."""
    return weighted_mean(network.task.losses(network(batch), batch), batch["weight"])


def observed(loss: Loss, network: TaskNetwork, batch: Batch) -> tuple[Tensor, Any]:
    """Return a loss and the outputs of the network that it was computed from."""
    outputs: list[Any] = []
    hook = network.register_forward_hook(lambda module, given, output: outputs.append(output))
    try:
        return loss(network, batch), outputs[-1]
    finally:
        hook.remove()


@torch.no_grad()
def predicted(network: TaskNetwork, batch: Batch) -> Any:
    """Return the outputs of a network in evaluation mode, without a gradient."""
    with evaluating(network):
        outputs = network(batch)
    torch.clear_autocast_cache()  # it holds weights in bfloat16 that were cast without a gradient
    return outputs
