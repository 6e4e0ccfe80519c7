"""From token vectors to a stack's first hidden state: segments, positions, norm, dropout, mapping to the width."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import StackConfig
from hanmo.nn.linear import Linear
from hanmo.nn.norm import Norm
from hanmo.nn.position import hierarchical, sinusoidal


class Embedding(nn.Module):
    """`project(dropout(norm(token + segment + position)))`, each part there or not."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.stack = stack
        width = stack.embedding_size
        learned = stack.position == "learned"
        self.position = empty_table(stack.positions or 0, width) if learned else None
        self.segment = empty_table(stack.segments, width) if stack.segments and not stack.shared_segments else None
        self.norm = Norm.of(stack, width, stack.embedding_norm_eps) if stack.embedding_norm else None
        self.project = Linear(width, stack.hidden_size, bias=stack.bias) if width != stack.hidden_size else None

    def forward(
        self, x: Tensor, positions: Tensor, segments: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """x: [b, n, embedding_size], token vectors.   positions: [b or 1, n].   → [b, n, hidden_size]."""
        if self.segment is not None:
            # A model with segments reads one text as segment 0 all through.
            x = x + (self.segment.weight[0] if segments is None else self.segment(segments))
        if self.position is not None:
            if self.stack.hierarchical:
                x = x + hierarchical(self.position.weight, positions, self.stack.hierarchical)
            else:
                x = x + self.position(positions + self.stack.position_offset)
        elif self.stack.position == "sinusoidal":
            x = x + sinusoidal(positions, x.shape[-1]).to(x.dtype)
        if self.norm is not None:
            x = self.norm(x, condition)
        x = F.dropout(x, self.stack.dropout, self.training)
        return x if self.project is None else self.project(x)


def empty_table(rows: int, width: int) -> nn.Embedding:
    """Make an embedding whose weights are not filled.

    `nn.Embedding` fills its own at once, for which torch imports its whole compiler where they lie on "meta".
    """
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))
