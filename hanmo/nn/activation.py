"""The activations, by the names that configurations use."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_TABLE: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch, name) for name in ("relu", "tanh", "sigmoid", "selu")},
    **{name: getattr(F, name) for name in ("silu", "elu", "softplus", "softsign")},
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "squared_relu": lambda x: F.relu(x).square(),
    "linear": lambda x: x,
}


def activate(x: Tensor, name: str) -> Tensor:
    """Apply the activation of that name.

    `gelu_erf` is exact, `gelu_tanh` the approximation of Google's BERT; `leaky_relu` leaks 0.2, as TensorFlow's does.
    """
    return _TABLE[name](x)
