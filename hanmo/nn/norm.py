"""Layer norm and RMS norm, with optional scale and bias, which may depend on a condition."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import StackConfig
from hanmo.nn.activation import activate


class Norm(nn.Module):
    """Normalize the last axis: `(x - mean) / sqrt(var + eps) * weight + bias`.

    As the stack's blocks use it, unless size or eps is given. RMS norm does not subtract the mean and has no bias
    (arXiv 1910.07467). A condition c adds `c W_scale` to the weight and `c W_bias` to the bias, per row of the batch
    (conditional layer normalization, kexue.fm/archives/7124), optionally behind a hidden layer.
    """

    def __init__(self, stack: StackConfig, size: int | None = None, eps: float | None = None) -> None:
        super().__init__()
        size = stack.hidden_size if size is None else size
        self.eps = stack.norm_eps if eps is None else eps
        self.kind, self.activation = stack.norm, stack.condition_activation
        scale, bias = stack.norm_scale, stack.norm_bias and stack.norm == "layer"
        condition, hidden = stack.condition, stack.condition_hidden
        self.weight = nn.Parameter(torch.ones(size)) if scale else None
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.hidden = nn.Linear(condition, hidden, bias=False) if condition and hidden else None
        self.condition_scale = nn.Linear(hidden or condition, size, bias=False) if condition and scale else None
        self.condition_bias = nn.Linear(hidden or condition, size, bias=False) if condition and bias else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x: [..., hidden_size].   condition: [b, condition], or None where the norm has none."""
        if self.condition_scale is None and self.condition_bias is None:
            return self._normalize(x, self.weight, self.bias)
        if condition is None:
            raise ValueError("this model's norms need a condition; pass condition=[rows, features]")
        if self.hidden is not None:
            condition = activate(self.hidden(condition), self.activation)
        x = self._normalize(x, None, None)
        if self.condition_scale is not None and self.weight is not None:
            x = x * (self.weight + self.condition_scale(condition))[:, None]
        if self.condition_bias is not None and self.bias is not None:
            x = x + (self.bias + self.condition_bias(condition))[:, None]
        return x

    def _normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)
        return F.rms_norm(x, x.shape[-1:], weight, self.eps)
