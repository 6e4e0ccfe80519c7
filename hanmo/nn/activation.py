"""The activations, by the names that configurations use."""

from torch import Tensor
from torch.nn import functional as F


def activate(x: Tensor, name: str) -> Tensor:
    """Apply the activation of that name; `gelu_erf` is exact, `gelu_tanh` Google's approximation."""
    match name:
        case "gelu_erf":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "silu":
            return F.silu(x)
        case "tanh":
            return x.tanh()
        case "linear":
            return x
    raise ValueError(f"activation is {name!r}; expected one of hanmo.config.ACTIVATIONS")
