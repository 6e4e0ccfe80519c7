"""x Wᵀ + b by torch, or by oneDNN in float32 on a CPU without gradients.

torch multiplies float32 by MKL: few rows in one thread only, and many at half the speed of oneDNN or less on processors
other than Intel's. oneDNN, which every torch for x86 includes, takes weights in any layout, transposed views too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_AVAILABLE = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call,unused-ignore]
# What torch.compile calls for such layers; since torch 2.0, without gradients.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _AVAILABLE else None
# Multiplications below which preparing oneDNN's call takes longer than computing.
_LEAST = 1 << 19


class Linear(nn.Linear):
    """`torch.nn.Linear` computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] → [..., out]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [..., in] by a matrix [out, in] and add a bias [out]: [..., out]."""
    if (
        _ONEDNN is not None
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= _LEAST
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and type(x) is Tensor  # not a DTensor
        and type(weight) is nn.Parameter
    ):
        result: Tensor = _ONEDNN(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)
