"""A model: token embedding, encoder and/or decoder, heads; ids in, `Output` out.

Knows no files and no texts. A model is created on the "meta" device and filled by checkpoint/, or by `initialize`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hanmo.config import ModelConfig
from hanmo.nn.cache import Cache
from hanmo.nn.embedding import empty_table
from hanmo.nn.heads import Discriminator, Pooler, Projection
from hanmo.nn.norm import Norm
from hanmo.nn.stack import Stack


@dataclass
class Output:
    """The result of a forward pass; None for heads that the model lacks or that were not requested.

    hidden: [b, n, hidden_size] of the last block.   logits: [b, n, vocab] ([b, 1, vocab] with logits="last").
    pooled: [b, hidden_size].   nsp: [b, 2] logits.   discriminator: [b, n, 1] logits.
    """

    hidden: Tensor
    logits: Tensor | None = None
    pooled: Tensor | None = None
    nsp: Tensor | None = None
    discriminator: Tensor | None = None


class Model(nn.Module):
    """Any network that a ModelConfig describes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token = empty_table(config.vocab_size, config.main.embedding_size)
        self.encoder = Stack(config.encoder) if config.encoder else None
        self.decoder = Stack(config.decoder) if config.decoder else None
        self.output = Projection(config) if config.output != "none" else None
        self.pooler = Pooler(config) if config.pool != "none" else None
        self.discriminator = Discriminator(config) if config.discriminator else None

    def empty(self) -> "Model":
        """Return a model of the same configuration without weights, on "meta"."""
        with torch.device("meta"):
            return Model(self.config)

    @property
    def main(self) -> Stack:
        """The stack whose output the heads take."""
        stack = self.decoder or self.encoder
        assert stack is not None
        return stack

    def forward(
        self,
        ids: Tensor,
        *,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
        memory: Tensor | None = None,
        condition: Tensor | None = None,
        cache: Cache | None = None,
        logits: str = "all",
    ) -> Output:
        """Run ids [b, n] through the model.

        segments, positions: [b, n].   mask: [b, n], True where a token is real (default: all are).
        source: [b, m] ids for the encoder of an encoder-decoder, with source_mask; or memory: [b, m, hidden_size], its
        output. Neither is needed when the cache holds the memory's keys and values.
        condition: [b, features] for conditional norms.   logits: "all", "last" (of each row), or "none".
        """
        if source is not None:
            memory = self.encode(source, mask=source_mask, condition=condition)
        hidden = self.main(
            self.vectors(self.main, ids, segments),
            segments=segments,
            positions=positions,
            mask=mask,
            condition=condition,
            memory=memory,
            memory_mask=source_mask,
            cache=cache,
        )
        return self.heads(hidden, condition, logits=logits)

    def heads(self, hidden: Tensor, condition: Tensor | None = None, *, logits: str = "all") -> Output:
        """Run the heads on the last hidden states [b, n, hidden_size]; for logits see `forward`."""
        output = Output(hidden)
        if self.output is not None and logits != "none":
            output.logits = self.logits(hidden[:, -1:] if logits == "last" else hidden, condition)
        if self.pooler is not None:
            output.pooled, output.nsp = self.pooler(hidden)
        if self.discriminator is not None:
            output.discriminator = self.discriminator(hidden)
        return output

    def encode(
        self,
        source: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Run the encoder of an encoder-decoder over source ids [b, m]: [b, m, hidden_size]."""
        if self.encoder is None:
            raise ValueError("this model has no encoder; call it with ids alone")
        x = self.vectors(self.encoder, source, None)
        return self.encoder(x, mask=mask, positions=positions, condition=condition)

    def logits(self, hidden: Tensor, condition: Tensor | None = None) -> Tensor:
        """Score the vocabulary from hidden states [..., hidden_size]: [..., vocab]."""
        if self.output is None:
            raise ValueError(
                "this model has no output onto its vocabulary; give a configuration whose output is 'lm' or 'mlm'"
            )
        return self.output(hidden, self.token.weight, condition)

    def new_cache(self, *, rows: int, capacity: int, dtype: torch.dtype | None = None) -> Cache:
        """Make a cache for `capacity` tokens of `rows` texts, on the model's device and in its dtype.

        Raises ValueError if the model has fewer positions.
        """
        context = self.main.config.context
        if context is not None and capacity > context:
            raise ValueError(f"capacity is {capacity}; the model knows {context} positions")
        weight = self.token.weight
        return Cache(self.main.config, rows=rows, capacity=capacity, dtype=dtype or weight.dtype, device=weight.device)

    def initialize(self, seed: int = 0) -> "Model":
        """Initialize the weights: truncated normal for matrices, ones and zeros for norms and biases."""
        generator = torch.Generator(self.token.weight.device).manual_seed(seed)
        std = self.config.initializer
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, Norm):
                    nn.init.constant_(parameter, float(name == "weight"))
                elif parameter.ndim < 2:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
        return self

    def vectors(self, stack: Stack, ids: Tensor, segments: Tensor | None) -> Tensor:
        """Look up the token vectors of ids [b, n] for a stack: [b, n, embedding_size]."""
        x = self.token(ids)
        if stack.config.shared_segments and stack.config.segments:
            x = x + (self.token.weight[0] if segments is None else self.token(segments))
        return x
