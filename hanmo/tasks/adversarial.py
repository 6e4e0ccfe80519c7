"""Adversarial training: the loss where the token vectors were moved in the direction that raises it most.

Fgm                 one step along the gradient (Miyato et al., arXiv 1605.07725)
Pgd                 several smaller ones (Madry et al., arXiv 1706.06083)
GradientPenalty     the loss and the squared norm of that gradient
Vat                 on texts without labels, the direction that changes the predictions most (arXiv 1704.03976)

As in bert4keras's examples the whole table of token vectors is moved, and norms are the whole table's. Directions are
found without dropout. The table itself is never written: the loss is computed with `table + delta`.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hanmo.errors import ConfigError, DataError
from hanmo.generate.rules import check_count, check_number
from hanmo.tasks.divergence import divergence
from hanmo.tasks.rows import Item, as_rows, read_rows
from hanmo.tasks.steps import StepWrapper, predicted
from hanmo.tasks.task import Batch, TaskNetwork
from hanmo.training import distributed
from hanmo.training.args import TrainArgs
from hanmo.training.score import evaluating
from hanmo.training.step import Loss

_TABLE = "network.backbone.token.weight"


class Pgd(StepWrapper):
    """Train on the loss at table + delta, delta of norm `epsilon` or less, found in `steps` steps of norm `rate`.

    clean: weight of the plain loss added to it; bert4keras trains on the moved table alone.
    """

    def __init__(self, *, epsilon: float = 1.0, rate: float = 0.3, steps: int = 3, clean: float = 0.0) -> None:
        check_number("epsilon", epsilon, above=0)
        check_number("rate", rate, above=0)
        if clean != 0:
            check_number("clean", clean, above=0)
        check_count("steps", steps)
        self.epsilon, self.rate, self.steps, self.clean = epsilon, rate, steps, clean

    def check(self, args: TrainArgs) -> None:
        distributed.check_single("adversarial training")

    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        def moved(network: TaskNetwork, batch: Batch) -> Tensor:
            delta = torch.zeros_like(network.backbone.token.weight, requires_grad=False)
            for _ in range(self.steps):
                with evaluating(network):
                    gradient = table_gradient(loss, network, batch, delta)
                delta = delta + perturbation(gradient, self.rate)
                delta = delta * (self.epsilon / delta.norm().clamp(min=self.epsilon))
            found = loss_at(loss, network, batch, delta)
            return found + self.clean * loss(network, batch) if self.clean else found

        return moved


class Fgm(Pgd):
    """Train on the loss at table + epsilon · gradient / its norm, as task_iflytek_adversarial_training.py does."""

    def __init__(self, *, epsilon: float = 0.5, clean: float = 0.0) -> None:
        super().__init__(epsilon=epsilon, rate=epsilon, steps=1, clean=clean)


class GradientPenalty(StepWrapper):
    """Train on loss + epsilon/2 · the squared norm of its gradient with respect to the table.

    by_occurrence: square the gradient of each occurrence of a token by itself, as task_iflytek_gradient_penalty.py
    does, and not their sum; the two differ where a token occurs more than once in a batch.
    It takes the gradient of a gradient: about twice the time of a step, and attention without a fused kernel.
    """

    def __init__(self, *, epsilon: float = 1.0, by_occurrence: bool = False) -> None:
        check_number("epsilon", epsilon, above=0)
        self.epsilon, self.by_occurrence = epsilon, by_occurrence

    def check(self, args: TrainArgs) -> None:
        distributed.check_single("adversarial training")
        if args.for_loop().recompute:
            raise ConfigError("recompute=True and a gradient penalty exclude each other; leave one out")

    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        def penalized(network: TaskNetwork, batch: Batch) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels have no second derivative
                if self.by_occurrence:
                    found, inputs = _with_vectors(loss, network, batch)
                else:
                    inputs = [torch.zeros_like(network.backbone.token.weight, requires_grad=True)]
                    found = loss_at(loss, network, batch, inputs[0])
                gradients = torch.autograd.grad(found, inputs, create_graph=True)
            return found + self.epsilon / 2 * sum((gradient**2).sum() for gradient in gradients)

        return penalized


class Vat(StepWrapper):
    """Add `weight` times the virtual adversarial loss of texts without labels to the loss.

    unlabeled: a file of JSON lines with "text" (or "a" and "b"), texts, pairs or rows.
    epsilon: norm of the perturbation.   xi: norm of the one that its direction is searched with, in `iterations` steps.
    batch: windows of unlabeled texts in a step, drawn by torch's generator; None: as many as labelled ones.
    bert4keras's example makes a step of its own on the unlabeled batch, at half the rate; here both are one step.
    """

    def __init__(
        self,
        unlabeled: str | Path | Iterable[Item],
        *,
        epsilon: float = 1.0,
        xi: float = 10.0,
        iterations: int = 1,
        weight: float = 1.0,
        batch: int | None = None,
    ) -> None:
        check_number("epsilon", epsilon, above=0)
        check_number("xi", xi, above=0)
        check_number("weight", weight, above=0)
        check_count("iterations", iterations)
        check_count("batch", 1 if batch is None else batch)
        is_file = isinstance(unlabeled, str | Path)
        self.rows = list(read_rows(unlabeled) if is_file else as_rows(unlabeled))  # type: ignore[arg-type]
        if not self.rows:
            raise DataError("unlabeled has no texts; give at least one")
        self.epsilon, self.xi, self.iterations, self.weight, self.batch = epsilon, xi, iterations, weight, batch

    def check(self, args: TrainArgs) -> None:
        distributed.check_single("adversarial training")

    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        task = network.task
        examples = [task.encode(row) for row in self.rows]
        windows = [(example, window) for example in examples for window in example.windows]

        def drawn(places: list[int]) -> Batch:
            arrays = task.collate([windows[place] for place in places], targets=False)
            device = network.backbone.token.weight.device
            return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

        try:
            predicted(network, drawn([0]))
        except KeyError as error:
            raise ConfigError(
                f"kind {task.config.kind!r} computes its outputs from {error} of labelled rows; VAT takes kinds that "
                "compute them from texts alone"
            ) from None

        def semi_supervised(network: TaskNetwork, batch: Batch) -> Tensor:
            count = self.batch or len(batch["ids"])
            places = torch.randint(len(windows), (count,)).tolist()
            noise = torch.randn_like(network.backbone.token.weight, requires_grad=False)
            found = virtual_loss(
                network, drawn(places), noise, epsilon=self.epsilon, xi=self.xi, iterations=self.iterations
            )
            return loss(network, batch) + self.weight * found

        return semi_supervised


def virtual_loss(
    network: TaskNetwork, batch: Batch, noise: Tensor, *, epsilon: float, xi: float, iterations: int
) -> Tensor:
    """Return the divergence of the predictions at table + delta from those before; see `Vat`.

    noise: shaped as the table of token vectors.   Probabilities below 1e-7 count as that, as in Keras.
    """
    task = network.task
    target = task.logits(predicted(network, batch), batch)

    def distance(network: TaskNetwork, batch: Batch) -> Tensor:
        return divergence(task.logits(network(batch), batch), target, floor=1e-7).mean()

    for _ in range(iterations):
        with evaluating(network):
            noise = table_gradient(distance, network, batch, perturbation(noise, xi))
    return loss_at(distance, network, batch, perturbation(noise, epsilon))


def loss_at(loss: Loss, network: TaskNetwork, batch: Batch, delta: Tensor) -> Tensor:
    """Return the loss with `delta` added to the table of token vectors [vocab, size]."""
    table = network.backbone.token.weight
    found: Tensor = functional_call(_Call(loss, network), {_TABLE: table + delta}, (batch,))
    return found


def table_gradient(loss: Loss, network: TaskNetwork, batch: Batch, delta: Tensor) -> Tensor:
    """Return the gradient of the loss at table + delta with respect to the table."""
    delta = delta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_at(loss, network, batch, delta), delta)
    return gradient


def perturbation(gradient: Tensor, size: float) -> Tensor:
    """Scale a gradient to a norm of `size`; 0 stays 0."""
    return size * gradient / (gradient.norm() + 1e-8)


class _Call(nn.Module):
    """A loss as a module, whose parameters `functional_call` can replace."""

    def __init__(self, loss: Loss, network: TaskNetwork) -> None:
        super().__init__()
        self.loss, self.network = loss, network

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.network, batch)


def _with_vectors(loss: Loss, network: TaskNetwork, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Return the loss and the token vectors that it was computed from."""
    vectors: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Tensor) -> None:
        vectors.append(output.requires_grad_())

    hook = network.backbone.token.register_forward_hook(keep)
    try:
        return loss(network, batch), vectors
    finally:
        hook.remove()
