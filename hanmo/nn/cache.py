"""The keys and values of tokens already seen: passed in, indexed by layer, owned by no layer.

keys[layer]    [b, heads, capacity, key_dim]     filled up to `length`
values[layer]  [b, heads, capacity, head_dim]
memory[layer]  (keys, values) of the encoder's output, made once by cross-attention
positions, order, mask   [b or 1, length]  of every key, so that a continued text sees what the whole would
"""

import torch
from torch import Tensor

from hanmo.config import StackConfig


class Cache:
    """Room for `capacity` tokens of `rows` texts through one stack."""

    def __init__(
        self,
        stack: StackConfig,
        *,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take the memory at once; padding counts, so that capacity may be more than the stack has positions."""
        shape = (rows, stack.num_heads, capacity)
        self.keys = [torch.empty(*shape, stack.key_dim, dtype=dtype, device=device) for _ in range(stack.num_layers)]
        self.values = [torch.empty(*shape, stack.head_dim, dtype=dtype, device=device) for _ in range(stack.num_layers)]
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * stack.num_layers
        self.memory_mask: Tensor | None = None
        self.capacity = capacity
        self.length = 0
        self.positions: Tensor | None = None
        self.order: Tensor | None = None
        self.mask: Tensor | None = None

    @property
    def rows(self) -> int:
        """How many texts there are."""
        return len(self.keys[0])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the old ones and give all of them: [b, heads, length + n, …].

        Raises ValueError if there is no room for them.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:  # torch would spread one key over no place without a word
            raise ValueError(f"the cache has room for {self.capacity} tokens; {end} were given: make a larger one")
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Keep these rows, in this order, a row as often as it is named; rows: [new b], integers."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.memory = [pair and (pair[0][rows], pair[1][rows]) for pair in self.memory]
        for name in ("positions", "order", "mask", "memory_mask"):
            value = getattr(self, name)
            if value is not None and (len(value) > 1 or name in ("mask", "memory_mask")):
                setattr(self, name, value[rows])

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        self.length = min(self.length, length)
        for name in ("positions", "order", "mask"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[:, : self.length])
