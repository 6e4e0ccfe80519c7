"""What stands on the last hidden state: projection onto the vocabulary, pooler, next sentence, discriminator."""

import torch
from torch import Tensor, nn

from hanmo.config import ModelConfig
from hanmo.nn.activation import activate
from hanmo.nn.linear import Linear, linear
from hanmo.nn.norm import Norm


class Output(nn.Module):
    """Scores of the vocabulary: `h Eᵀ`, tied or not; "mlm" transforms h first and adds a bias.

    Where embeddings are narrower than the stack, an "lm" output maps back with `project` first.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stack = config.main
        self.scale, self.activation = config.logit_scale, config.head_activation
        mlm = config.output == "mlm"
        narrow = stack.embedding_size
        self.dense = Linear(stack.hidden_size, narrow) if mlm else None
        self.norm = (
            Norm(
                narrow,
                eps=config.head_norm_eps,
                condition=stack.condition,
                hidden=stack.condition_hidden,
                activation=stack.condition_activation,
            )
            if mlm
            else None
        )
        self.project = (
            Linear(stack.hidden_size, narrow, bias=stack.bias) if not mlm and narrow != stack.hidden_size else None
        )
        self.weight = None if config.tied else nn.Parameter(torch.empty(config.vocab_size, narrow))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if mlm else None

    def forward(self, hidden: Tensor, embedding: Tensor, condition: Tensor | None = None) -> Tensor:
        """hidden: [..., hidden_size].   embedding: [vocab, embedding_size], used where tied.   → [..., vocab]."""
        if self.scale != 1.0:
            hidden = hidden * self.scale
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(activate(self.dense(hidden), self.activation), condition)
        if self.project is not None:
            hidden = self.project(hidden)
        return linear(hidden, embedding if self.weight is None else self.weight, self.bias)


class Pooler(nn.Module):
    """A vector of the whole text from its first token; `nsp` judges from it whether two sentences follow."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.pool
        self.dense = Linear(config.main.hidden_size, config.main.hidden_size)
        self.nsp = Linear(config.main.hidden_size, 2) if config.nsp else None

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """hidden: [b, n, hidden_size] → ([b, hidden_size], [b, 2] logits or None)."""
        pooled = activate(self.dense(hidden[:, 0]), self.activation)
        return pooled, None if self.nsp is None else self.nsp(pooled)


class Discriminator(nn.Module):
    """ELECTRA's judge of each token: one logit, above 0 where it thinks the token was replaced."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.head_activation
        self.dense = Linear(config.main.hidden_size, config.main.hidden_size)
        self.output = Linear(config.main.hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [b, n, hidden_size] → [b, n, 1]."""
        return self.output(activate(self.dense(hidden), self.activation))
