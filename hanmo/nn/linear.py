"""x Wᵀ + b, as torch computes it, or at the speed of the memory on a CPU where nothing is to be differentiated.

torch multiplies float32 by MKL: few rows in one thread only, and many at half the speed of oneDNN or less on processors
that are not Intel's. oneDNN, which every torch for x86 brings, takes weights as they lie, transposed views too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Linear", "linear"]

_HAS_IT = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call,unused-ignore]
# What torch's own compiler calls for such layers; there since 2.0, and without a gradient.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _HAS_IT else None
# Multiplications below which preparing oneDNN's call takes longer than they do.
_LEAST = 1 << 19


class Linear(nn.Linear):
    """torch's layer, its parameters, and `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] → [..., out]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [..., in] by a matrix [out, in] and add a bias [out]: [..., out]."""
    if _ONEDNN is not None and _suits(x, weight):
        result: Tensor = _ONEDNN(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= _LEAST
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and type(x) is Tensor  # not one that is spread over processes
        and type(weight) is nn.Parameter
    )
