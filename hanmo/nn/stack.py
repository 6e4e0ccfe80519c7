"""A stack of blocks with its embeddings and its view of positions and masks; one forward for every kind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hanmo.config import StackConfig
from hanmo.nn.attention import AttentionInputs
from hanmo.nn.block import Block
from hanmo.nn.cache import Cache
from hanmo.nn.embedding import Embedding, empty_table
from hanmo.nn.mask import order_of, places, real_positions, visible
from hanmo.nn.norm import Norm
from hanmo.nn.position import bucket, distance, sinusoidal

FusedStep: TypeAlias = Callable[["Stack", Tensor, AttentionInputs, Cache], Tensor | None]


@dataclass
class Keys:
    """The tokens that new ones may attend to: places, orders and reality of all of them, old and new."""

    positions: Tensor  # [b or 1, m]
    order: Tensor | None  # [b or 1, m]; None: everything is visible
    mask: Tensor | None  # [b, m]


class Stack(nn.Module):
    """`layer` blocks.

    recompute: in training, run each block again in the backward pass instead of keeping what lies inside it.
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
        self.norm = Norm.of(stack) if stack.final_norm else None

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
        keys = self._keys(x, segments, positions, mask, cache)
        new = keys.positions[:, -x.shape[1] :]
        self._check_positions(new)
        inputs = {"attention": self._attention_inputs(keys, x)}
        if self.config.has_cross:
            if cache is not None and memory_mask is None:
                memory_mask = cache.memory_mask
            inputs["cross"] = self.cross_inputs(new, memory, memory_mask, cache)
        x = self.embedding(x, new, segments, condition)
        scores: dict[str, Tensor | None] | None = None
        fused = None
        if self.fused_step is not None and cache is not None and condition is None:
            fused = self.fused_step(self, x, inputs["attention"], cache)
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
            cache.length = keys.positions.shape[1]
            cache.positions, cache.order, cache.mask = keys.positions, keys.order, keys.mask
            cache.memory_mask = memory_mask
        return x if self.norm is None else self.norm(x, condition)

    def _keys(
        self, x: Tensor, segments: Tensor | None, positions: Tensor | None, mask: Tensor | None, cache: Cache | None
    ) -> Keys:
        rows, count = x.shape[:2]
        start = cache.length if cache is not None else 0
        old_mask = cache.mask if cache is not None else None
        if mask is not None or old_mask is not None:
            new_mask = mask.bool() if mask is not None else torch.ones(rows, count, dtype=torch.bool, device=x.device)
            if old_mask is None:
                old_mask = torch.ones(rows, start, dtype=torch.bool, device=x.device)
            mask = torch.cat((old_mask, new_mask), 1)
        if positions is None:
            positions = places(count, start, x.device) if mask is None else real_positions(mask)[:, start:]
        order = None
        if self.config.mask != "full":
            before = cache.order[:, -1:] if cache is not None and cache.order is not None else None
            order = order_of(self.config.mask, places(count, start, x.device), segments, before)
        return Keys(
            _append(cache.positions if cache is not None else None, positions),
            None if order is None else _append(cache.order if cache is not None else None, order),
            mask,
        )

    def _check_positions(self, new: Tensor) -> None:
        # Tokens are counted, not positions looked at: reading a tensor's maximum would stall a GPU at every step.
        limit = self.config.context
        if limit is not None and new.shape[1] > limit:
            raise ValueError(f"the text has {new.shape[1]} tokens; this model knows {limit} positions")

    def _attention_inputs(self, keys: Keys, x: Tensor) -> AttentionInputs:
        count = x.shape[1]
        new = keys.positions[:, -count:]
        inputs = AttentionInputs()
        if keys.order is None:
            if keys.mask is not None:
                inputs.mask = visible(keys.mask.new_zeros(1, count).long(), keys.mask.new_zeros(1, 1).long(), keys.mask)
        elif self._plainly_causal(keys, count):
            inputs.causal = count > 1
        else:
            inputs.mask = visible(keys.order[:, -count:], keys.order, keys.mask)
        self.place(inputs, new, keys.positions)
        return inputs

    def place(self, inputs: AttentionInputs, new: Tensor, keys: Tensor) -> None:
        """Add to a inputs how far keys at positions [b or 1, m] are from new tokens at [b or 1, n]."""
        match self.config.position:
            case "rotary":
                inputs.rotary = sinusoidal(new, self.config.key_dim)
            case "relative":
                clip = self.config.relative_clip
                inputs.relative = distance(new, keys).clamp(-clip, clip) + clip
                rows = torch.arange(2 * clip + 1, device=new.device)
                inputs.relative_table = sinusoidal(rows, self.config.key_dim)
            case "buckets":
                inputs.bias = self.bias(new, keys, both_ways=self.config.mask == "full")

    def _plainly_causal(self, keys: Keys, count: int) -> bool:
        """Tell whether the kernel's own triangle will do: nothing masked, no bias, all tokens new or one of them."""
        whole = count in (1, keys.positions.shape[1])
        return self.config.mask == "causal" and keys.mask is None and self.relative is None and whole

    def cross_inputs(
        self, new: Tensor, memory: Tensor | None, memory_mask: Tensor | None, cache: Cache | None
    ) -> AttentionInputs:
        """Make the inputs of an encoder's output, given or kept by the cache, for new tokens at [b or 1, n]."""
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
            inputs.bias = self.bias(new, places(total, 0, new.device), both_ways=False)
        return inputs

    def bias(self, queries: Tensor, keys: Tensor, *, both_ways: bool) -> Tensor:
        """Look up T5's bias of the scores, by positions [b or 1, n] and [b or 1, m]: [b or 1, heads, n, m]."""
        assert self.relative is not None
        stack = self.config
        rows = bucket(distance(queries, keys), both_ways=both_ways, buckets=stack.buckets, limit=stack.bucket_distance)
        return self.relative.weight[:, rows].transpose(0, 1)  # [heads, b, n, m] → [b, heads, n, m]


def _append(old: Tensor | None, new: Tensor) -> Tensor:
    if old is None:
        return new
    rows = max(len(old), len(new))
    return torch.cat((old.expand(rows, -1), new.expand(rows, -1)), 1)
