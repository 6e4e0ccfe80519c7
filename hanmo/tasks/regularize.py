"""R-Drop and focal loss, as step wrappers."""

import torch
from torch import Tensor

from hanmo.errors import ConfigError
from hanmo.generate.rules import check_number
from hanmo.tasks.divergence import divergence
from hanmo.tasks.steps import StepWrapper, observed, task_loss
from hanmo.tasks.task import Batch, TaskNetwork, weighted_mean
from hanmo.training.step import Loss


class RDrop(StepWrapper):
    """Pass each batch twice, and bring the two predictions closer (Liang et al., arXiv 2106.14448).

    (loss₁ + loss₂) / 2 + alpha/4 · (KL(1 ‖ 2) + KL(2 ‖ 1)): half of the paper's objective, so that it is the plain loss
    at alpha = 0.
    """

    def __init__(self, *, alpha: float = 4.0) -> None:
        check_number("alpha", alpha, above=0)
        self.alpha = alpha

    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        main, task = network.backbone.config.main, network.task
        if not (main.dropout or main.attention_dropout):
            raise ConfigError("the model has no dropout, so R-Drop would compare equal passes; set it in its config")

        def twice(network: TaskNetwork, batch: Batch) -> Tensor:
            one, first = observed(loss, network, batch)
            two, second = observed(loss, network, batch)
            p, q = task.logits(first, batch), task.logits(second, batch)
            apart = weighted_mean(divergence(p, q) + divergence(q, p), batch["weight"])
            return (one + two) / 2 + self.alpha / 4 * apart

        return twice


class Focal(StepWrapper):
    """Multiply the loss of each window by (1 - exp(-loss))^gamma (Lin et al., arXiv 1708.02002).

    For one label a text this is the focal loss, as exp(-loss) is the label's probability; other kinds are weighted by
    the loss of a whole window.
    """

    def __init__(self, *, gamma: float = 2.0) -> None:
        check_number("gamma", gamma, above=0)
        self.gamma = gamma

    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        if loss is not task_loss:
            raise ConfigError("focal loss changes the loss of the task itself; name it first in wrap")

        def focal(network: TaskNetwork, batch: Batch) -> Tensor:
            losses = network.task.losses(network(batch), batch)
            easy = torch.exp(-losses).clamp(max=1 - 1e-6)  # the gradient of 0^gamma is NaN for gamma below 1
            return weighted_mean(losses * (1 - easy) ** self.gamma, batch["weight"])

        return focal
