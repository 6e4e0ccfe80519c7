"""The heads on the last hidden state: projection onto the vocabulary, pooler, next sentence, discriminator."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from hanmo.config import ModelConfig
from hanmo.nn.activation import activate
from hanmo.nn.linear import Linear, linear
from hanmo.nn.norm import Norm


class Projection(nn.Module):
    """Logits of the vocabulary: `h Eᵀ`, tied or not; "mlm" transforms h first and adds a bias.

    If the embedding size differs from the hidden size, an "lm" output applies `project` first.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stack = config.main
        self.scale, self.activation = config.logit_scale, config.head_activation
        mlm = config.output == "mlm"
        size = stack.embedding_size
        self.dense = Linear(stack.hidden_size, size) if mlm else None
        plain = replace(stack, norm="layer", norm_scale=True, norm_bias=True)
        self.norm = Norm(plain, size, config.head_norm_eps) if mlm else None
        projects = not mlm and size != stack.hidden_size
        self.project = Linear(stack.hidden_size, size, bias=stack.bias) if projects else None
        self.weight = None if config.tied else nn.Parameter(torch.empty(config.vocab_size, size))
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
    """A vector of the text from its first token; `nsp` predicts from it whether two sentences are consecutive."""

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
    """ELECTRA's discriminator: one logit a token, above 0 for a token predicted to be replaced."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.head_activation
        self.dense = Linear(config.main.hidden_size, config.main.hidden_size)
        self.output = Linear(config.main.hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [b, n, hidden_size] → [b, n, 1]."""
        return self.output(activate(self.dense(hidden), self.activation))
