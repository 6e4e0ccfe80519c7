"""A stack of blocks with its embeddings, positions and masks: one forward pass for every kind."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from array_api_compat import torch as xp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hanmo.config import StackConfig
from hanmo.nn.attention import AttentionInputs
from hanmo.nn.block import Block
from hanmo.nn.cache import Cache
from hanmo.nn.embedding import Embedding, empty_table
from hanmo.nn.norm import Norm
from hanmo.nn.position import Tokens, bucket, distance, sinusoidal, visible

FusedStep: TypeAlias = Callable[["Stack", Tensor, dict[str, AttentionInputs], Cache], Tensor | None]


class Stack(nn.Module):
    """Embedding, blocks and final norm.

    recompute: in training, run each block again in the backward pass instead of keeping its activations.
    fused_step: (stack, x, inputs, cache) → hidden states of all blocks, or None for a call that it does not support;
    set by an engine.
    """

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.config = stack
        self.recompute = False
        self.fused_step: FusedStep | None = None
        self.embedding = Embedding(stack)
        self.blocks = nn.ModuleList(Block(stack) for _ in range(1 if stack.shared_layers else stack.num_layers))
        self.relative = empty_table(stack.num_heads, stack.buckets) if stack.position == "buckets" else None
        self.norm = Norm(stack) if stack.final_norm else None

    def forward(
        self,
        x: Tensor,
        *,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Run x [b, n, embedding_size] of token vectors through the stack: [b, n, hidden_size].

        positions: [b or 1, n]; None counts the real tokens, from where the cache ends.
        mask: [b, n], True where a token is real; None: all are.   memory: [b, m, hidden_size], memory_mask: [b, m].
        """
        count = x.shape[1]
        tokens = (Tokens() if cache is None else cache.tokens).append(
            self.config.mask, x, xp, segments=segments, mask=None if mask is None else mask.bool(), positions=positions
        )
        new = tokens.positions[:, -count:]
        # Tokens are counted instead of reading the largest position, which would stall a GPU at every step.
        if self.config.context is not None and count > self.config.context:
            raise ValueError(f"the text has {count} tokens; this model knows {self.config.context} positions")
        inputs = {"attention": self.attention_inputs(tokens, count)}
        if self.config.has_cross:
            if cache is not None and memory_mask is None:
                memory_mask = cache.memory_mask
            inputs["cross"] = self.cross_inputs(new, memory, memory_mask, cache)
        x = self.embedding(x, new, segments, condition)
        scores: dict[str, Tensor | None] | None = None
        fused = None
        if self.fused_step is not None and cache is not None and condition is None:
            fused = self.fused_step(self, x, inputs, cache)
        for layer in range(self.config.num_layers if fused is None else 0):
            block = self.blocks[0 if self.config.shared_layers else layer]
            if self.recompute and torch.is_grad_enabled() and cache is None:
                x, scores = checkpoint(
                    block, x, inputs, memory=memory, condition=condition, scores=scores, use_reentrant=False
                )
            else:
                x, scores = block(
                    x, inputs, memory=memory, condition=condition, cache=cache, layer=layer, scores=scores
                )
        x = x if fused is None else fused
        if cache is not None:
            cache.length, cache.tokens, cache.memory_mask = tokens.length, tokens, memory_mask
        return x if self.norm is None else self.norm(x, condition)

    def attention_inputs(self, tokens: Tokens, count: int) -> AttentionInputs:
        """Make the inputs of self-attention of the last `count` tokens."""
        inputs = AttentionInputs()
        # The kernel's own triangle does where nothing is masked, no bias is added, and all tokens are new, or one is.
        plain = self.config.mask == "causal" and tokens.mask is None and self.relative is None
        if plain and count in (1, tokens.length):
            inputs.causal = count > 1
        elif self.config.mask != "full" or tokens.mask is not None:
            inputs.mask = tokens.visible(count)
        self.place(inputs, tokens.positions[:, -count:], tokens.positions)
        return inputs

    def place(self, inputs: AttentionInputs, new: Tensor, keys: Tensor) -> None:
        """Set what depends on positions in inputs, for queries at new [b or 1, n] and keys at [b or 1, m]."""
        match self.config.position:
            case "rotary":
                inputs.rotary = sinusoidal(new, self.config.key_dim, xp)
            case "relative":
                clip = self.config.relative_clip
                inputs.relative = distance(new, keys).clamp(-clip, clip) + clip
                rows = torch.arange(2 * clip + 1, device=new.device)
                inputs.relative_table = sinusoidal(rows, self.config.key_dim, xp)
            case "buckets":
                inputs.bias = self.bias(new, keys, both_ways=self.config.mask == "full")

    def cross_inputs(
        self, new: Tensor, memory: Tensor | None, memory_mask: Tensor | None, cache: Cache | None
    ) -> AttentionInputs:
        """Make the inputs of cross-attention to memory, given or in the cache, for queries at new [b or 1, n]."""
        inputs = AttentionInputs()
        if memory_mask is not None:
            zero = new.new_zeros(1, 1)
            inputs.mask = visible(zero.expand(1, new.shape[1]), zero, memory_mask.bool())
        if self.config.cross_positions:
            if memory is not None:
                total = memory.shape[1]
            elif cache is not None and (kept := cache.memory[0]) is not None:
                total = kept[0].shape[2]
            else:
                raise ValueError("memory is missing; this stack attends to an encoder's output")
            inputs.bias = self.bias(new, torch.arange(total, device=new.device)[None], both_ways=False)
        return inputs

    def bias(self, queries: Tensor, keys: Tensor, *, both_ways: bool) -> Tensor:
        """Look up T5's bias of the scores, by positions [b or 1, n] and [b or 1, m]: [b or 1, heads, n, m]."""
        assert self.relative is not None
        stack = self.config
        rows = bucket(
            distance(queries, keys), xp, both_ways=both_ways, buckets=stack.buckets, limit=stack.bucket_distance
        )
        return self.relative.weight[:, rows].transpose(0, 1)  # [heads, b, n, m] → [b, heads, n, m]
