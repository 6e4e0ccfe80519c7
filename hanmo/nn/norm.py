"""Layer norm and RMS norm, with or without scale and bias, and shifted by a condition when there is one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import StackConfig
from hanmo.nn.activation import activate


class Norm(nn.Module):
    """Normalise the last axis: `(x - mean) / sqrt(var + eps) * weight + bias`.

    kind "rms" leaves the mean in and has no bias (arXiv 1910.07467). weight and bias are there or not as told.
    condition: width of a vector c that adds `c W_scale` to the weight and `c W_bias` to the bias, per row of the batch
    (conditional layer normalisation, kexue.fm/archives/7124); hidden and activation put one layer before them.
    """

    def __init__(
        self,
        width: int,
        *,
        eps: float,
        kind: str = "layer",
        scale: bool = True,
        bias: bool = True,
        condition: int = 0,
        hidden: int = 0,
        activation: str = "linear",
    ) -> None:
        super().__init__()
        self.eps, self.kind, self.activation = eps, kind, activation
        bias = bias and kind == "layer"
        self.weight = nn.Parameter(torch.ones(width)) if scale else None
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.hidden = nn.Linear(condition, hidden, bias=False) if condition and hidden else None
        self.condition_scale = nn.Linear(hidden or condition, width, bias=False) if condition and scale else None
        self.condition_bias = nn.Linear(hidden or condition, width, bias=False) if condition and bias else None

    @classmethod
    def of(cls, stack: StackConfig, width: int | None = None, eps: float | None = None) -> "Norm":
        """Make the norm that a stack's blocks use."""
        return cls(
            width or stack.hidden_size,
            eps=eps or stack.norm_eps,
            kind=stack.norm,
            scale=stack.norm_scale,
            bias=stack.norm_bias,
            condition=stack.condition,
            hidden=stack.condition_hidden,
            activation=stack.condition_activation,
        )

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x: [..., hidden_size].   condition: [b, condition], or None where the norm has none."""
        if self.condition_scale is None and self.condition_bias is None:
            return self._normalise(x, self.weight, self.bias)
        if condition is None:
            raise ValueError("this model's norms need a condition; pass condition=[rows, features]")
        if self.hidden is not None:
            condition = activate(self.hidden(condition), self.activation)
        x = self._normalise(x, None, None)
        if self.condition_scale is not None and self.weight is not None:
            x = x * (self.weight + self.condition_scale(condition))[:, None]
        if self.condition_bias is not None and self.bias is not None:
            x = x + (self.bias + self.condition_bias(condition))[:, None]
        return x

    def _normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)
        return F.rms_norm(x, x.shape[-1:], weight, self.eps)
