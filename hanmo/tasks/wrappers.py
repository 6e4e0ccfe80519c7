"""The step wrappers by name, for `hanmo.tasks.fit(…, wrap=)`.

wrap="fgm"                        with the default options
wrap=Fgm(epsilon=1.0)             an object
wrap=["focal", RDrop(alpha=1)]    several: the first changes the loss of the task, the next what that gives
wrap=function                     (loss, network) → loss, with loss(network, batch) → scalar
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from inspect import signature
from typing import Any, TypeAlias

import torch

from hanmo.errors import ConfigError
from hanmo.tasks.adversarial import Fgm, GradientPenalty, Pgd, Vat
from hanmo.tasks.compress import Distill, Theseus
from hanmo.tasks.config import is_number
from hanmo.tasks.pipeline import TaskPipeline
from hanmo.tasks.regularize import Focal, RDrop
from hanmo.tasks.rows import Row
from hanmo.tasks.steps import StepWrapper
from hanmo.tasks.task import TaskNetwork
from hanmo.training.args import TrainArgs
from hanmo.training.data.epochs import digest
from hanmo.training.step import Loss

WRAPPERS: dict[str, type[StepWrapper]] = {
    "fgm": Fgm,
    "pgd": Pgd,
    "gradient_penalty": GradientPenalty,
    "vat": Vat,
    "r_drop": RDrop,
    "focal": Focal,
    "distill": Distill,
    "theseus": Theseus,
}
Wrap: TypeAlias = str | Callable[[Loss, TaskNetwork], Loss]


def make_wrapper(name: str, **options: Any) -> StepWrapper:
    """Make a wrapper by its name in `WRAPPERS`.

    Raises ConfigError for an unknown name, an option that it does not have, or one that is missing.
    """
    if name not in WRAPPERS:
        raise ConfigError(f"wrap is {name!r}; expected one of {', '.join(WRAPPERS)}")
    try:
        taken = signature(WRAPPERS[name])
        taken.bind(**options)
    except TypeError as error:
        raise ConfigError(f"wrap {name!r}: {error}") from None
    for option, value in options.items():
        if taken.parameters[option].annotation in (int, float) and not is_number(value):
            raise ConfigError(f"wrap {name!r}: {option} is {str(value)[:100]!r}; expected a number")
    return WRAPPERS[name](**options)


def wrapped(loss: Loss, network: TaskNetwork, wrap: Wrap | Sequence[Wrap], args: TrainArgs) -> Loss:
    """Wrap a loss in what `wrap` says, the first innermost.

    Raises ConfigError for a name that is unknown, and where the network or the arguments exclude a wrapper.
    """
    for each in _several(wrap):
        wrapper = make_wrapper(each) if isinstance(each, str) else each
        if isinstance(wrapper, StepWrapper):
            if args.compile:
                raise ConfigError(f"compile=True and {type(wrapper).__name__} exclude each other; leave one out")
            wrapper.check(args)
        loss = wrapper(loss, network)
    return loss


def describe(wrap: Wrap | Sequence[Wrap]) -> str:
    """Return the names of wrappers, with the numbers of those that are objects, and digests of teachers and texts."""
    found = []
    for each in _several(wrap):
        name = each if isinstance(each, str) else getattr(each, "__name__", type(each).__name__)
        parts = vars(each) if isinstance(each, StepWrapper) else {}
        told = {option: shown for option, value in parts.items() if (shown := _told(value)) is not None}
        found.append(f"{name} {told}")
    return ", ".join(found)


def _told(value: Any) -> Any:
    """Return a number, the digest of rows or of a network's weights, or None for anything else."""
    if isinstance(value, TaskPipeline):
        weights = sha256()
        for name, tensor in value.network.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return weights.hexdigest()
    if isinstance(value, list) and all(isinstance(each, Row) for each in value):
        return digest(dict(row.data) for row in value)
    return value if is_number(value) else None


def _several(wrap: Wrap | Sequence[Wrap]) -> Sequence[Wrap]:
    return [wrap] if isinstance(wrap, str) or callable(wrap) else wrap
