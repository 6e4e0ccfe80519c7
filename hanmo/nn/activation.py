"""The activations, by the names that configurations use."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_TABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "squared_relu": lambda x: F.relu(x).square(),
    "linear": lambda x: x,
}


def activate(x: Tensor, name: str) -> Tensor:
    """Apply the activation of that name, one of `hanmo.config.ACTIVATIONS`.

    `gelu_erf` is exact, `gelu_tanh` the approximation of Google's BERT; `leaky_relu` leaks 0.2, as TensorFlow's does.
    """
    return _TABLE[name](x)
