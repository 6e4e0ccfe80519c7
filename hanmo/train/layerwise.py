"""Parameter groups: which parameter learns at which rate, and which one decays.

Knows names and shapes of parameters; knows no optimizer. Any torch optimizer takes the groups.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from hanmo.errors import ConfigError

__all__ = ["depth_multipliers", "is_matrix", "parameter_groups"]


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Say whether a parameter has two axes or more: all but norms and biases, the ones that weight decay leaves out."""
    return parameter.ndim >= 2


def parameter_groups(
    parameters: Iterable[tuple[str, Tensor]],
    *,
    lr: float,
    weight_decay: float = 0.0,
    decays: Callable[[str, Tensor], bool] = is_matrix,
    multipliers: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Sort trainable parameters into groups of one learning rate and one weight decay each.

    parameters: model.named_parameters().   decays: (name, parameter) -> whether weight_decay is meant for it.
    multipliers: {part of a name: factor of lr}; where several parts fit, all factors count.
    Returns groups in order of appearance. Raises ConfigError if a multiplier fits no parameter.
    """
    multipliers = multipliers or {}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    unused = set(multipliers)
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        rate = lr
        for part, factor in multipliers.items():
            if part in name:
                unused.discard(part)
                rate *= factor
        groups.setdefault((rate, weight_decay if decays(name, parameter) else 0.0), []).append(parameter)
    if unused:
        raise ConfigError(
            f"learning-rate multipliers for {sorted(unused)} fit no trainable parameter; "
            "expected parts of the names in model.named_parameters()"
        )
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def depth_multipliers(prefix: str, depth: int, *, factor: float) -> dict[str, float]:
    """Make multipliers that shrink by `factor` a block from the output down: {"<prefix>.0.": factor^depth, …}.

    prefix: name of the list of blocks, such as "decoder.blocks".   depth: its length.
    Raises ConfigError if depth is less than 1 or factor not above 0.
    """
    if depth < 1 or factor <= 0:
        raise ConfigError(f"depth_multipliers got depth={depth}, factor={factor}; expected depth >= 1 and factor > 0")
    return {f"{prefix}.{index}.": factor ** (depth - index) for index in range(depth)}
