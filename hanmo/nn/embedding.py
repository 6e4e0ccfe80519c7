"""From token vectors to a stack's first hidden state: segments, positions, norm, dropout, projection."""

import torch
from array_api_compat import torch as xp
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import StackConfig
from hanmo.nn.linear import Linear
from hanmo.nn.norm import Norm
from hanmo.nn.position import hierarchical, sinusoidal


class Embedding(nn.Module):
    """`project(dropout(norm(token + segment + position)))`, each part optional."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.stack = stack
        size = stack.embedding_size
        learned = stack.position == "learned"
        self.position = empty_table(stack.positions or 0, size) if learned else None
        self.segment = empty_table(stack.segments, size) if stack.segments and not stack.shared_segments else None
        self.norm = Norm(stack, size, stack.embedding_norm_eps) if stack.embedding_norm else None
        self.project = Linear(size, stack.hidden_size, bias=stack.bias) if size != stack.hidden_size else None

    def forward(
        self, x: Tensor, positions: Tensor, segments: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """x: [b, n, embedding_size], token vectors.   positions: [b or 1, n].   → [b, n, hidden_size]."""
        if self.segment is not None:
            # Without segment ids every token belongs to segment 0.
            x = x + (self.segment.weight[0] if segments is None else self.segment(segments))
        if self.position is not None:
            if self.stack.hierarchical:
                x = x + hierarchical(self.position.weight, positions, self.stack.hierarchical)
            else:
                x = x + self.position(positions + self.stack.position_offset)
        elif self.stack.position == "sinusoidal":
            x = x + sinusoidal(positions, x.shape[-1], xp).to(x.dtype)
        if self.norm is not None:
            x = self.norm(x, condition)
        x = F.dropout(x, self.stack.dropout, self.training)
        return x if self.project is None else self.project(x)


def empty_table(rows: int, size: int) -> nn.Embedding:
    """Make an embedding with uninitialized weights.

    `nn.Embedding` initializes its own, for which torch imports its compiler when they are on "meta".
    """
    return nn.Embedding(rows, size, _weight=torch.empty(rows, size))
