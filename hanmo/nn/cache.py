"""The keys and values of earlier tokens: passed in by the caller, indexed by layer, owned by no layer.

keys[layer]    [b, heads, capacity, key_dim]     filled up to `length`
values[layer]  [b, heads, capacity, head_dim]
memory[layer]  (keys, values) of the encoder's output, computed once by cross-attention
tokens         positions, orders and padding of the keys, so that a continued text has the masks of an unbroken one
"""

import torch
from array_api_compat import torch as xp
from torch import Tensor
from torch.nn import functional as F

from hanmo.config import StackConfig
from hanmo.nn.position import Tokens


class Cache:
    """Room for `capacity` tokens of `rows` texts through one stack.

    The memory is allocated at once. Padding counts, so capacity may exceed the number of positions.
    """

    def __init__(
        self,
        stack: StackConfig,
        *,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (rows, stack.num_heads, capacity)
        self.keys = [torch.empty(*shape, stack.key_dim, dtype=dtype, device=device) for _ in range(stack.num_layers)]
        self.values = [torch.empty(*shape, stack.head_dim, dtype=dtype, device=device) for _ in range(stack.num_layers)]
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * stack.num_layers
        self.memory_mask: Tensor | None = None
        self.capacity = capacity
        self.length = 0
        self.tokens = Tokens()

    @property
    def rows(self) -> int:
        """Number of texts."""
        return len(self.keys[0])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the old ones and return all of them: [b, heads, length + n, …].

        Raises ValueError if there is no room for them.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:  # torch would silently broadcast one key to a slice of no columns
            raise ValueError(f"the cache has room for {self.capacity} tokens; {end} were given: make a larger one")
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Make new row i a copy of old row rows[i]; rows: [new b], integers."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.memory = [pair and (pair[0][rows], pair[1][rows]) for pair in self.memory]
        self.memory_mask = None if self.memory_mask is None else self.memory_mask[rows]
        self.tokens = self.tokens.take(rows)

    def join(self, other: "Cache") -> None:
        """Append the rows of another cache, the shorter ones padded on the left; shorter memory, on the right."""
        room = max(self.capacity - self.length, other.capacity - other.length)
        starts = self.tokens.unused(), other.tokens.unused()
        length = max(self.length - starts[0], other.length - starts[1])
        rows = self.rows
        for ours, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, (above, below) in enumerate(zip(ours, theirs, strict=True)):
                above, below = above[:, :, starts[0] : self.length], below[:, :, starts[1] : other.length]
                joined = above.new_zeros(rows + len(below), above.shape[1], length + room, above.shape[3])
                joined[:rows, :, length - above.shape[2] : length] = above
                joined[rows:, :, length - below.shape[2] : length] = below
                ours[layer] = joined
        masks = self.real_memory(), other.real_memory()
        for layer, pairs in enumerate(zip(self.memory, other.memory, strict=True)):
            if pairs[0] and pairs[1]:
                self.memory[layer] = _stacked(pairs[0][0], pairs[1][0]), _stacked(pairs[0][1], pairs[1][1])
        if masks[0] is not None and masks[1] is not None:
            self.memory_mask = _stacked(masks[0][..., None], masks[1][..., None])[..., 0]
        self.tokens = self.tokens.join(other.tokens, rows, other.rows, xp)
        self.capacity, self.length = length + room, length

    def real_memory(self) -> Tensor | None:
        """Tell which tokens of the memory are real: [b, m]; None without memory."""
        first = self.memory[0]
        if first is None or self.memory_mask is not None:
            return self.memory_mask
        return first[0].new_ones(first[0].shape[0], first[0].shape[2], dtype=torch.bool)

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        self.length = min(self.length, length)
        self.tokens = self.tokens.cut(self.length)


def _stacked(above: Tensor, below: Tensor) -> Tensor:
    """Put rows [b, …, m, d] above others, the shorter ones padded on the right."""
    longest = max(above.shape[-2], below.shape[-2])
    return torch.cat([F.pad(each, (0, 0, 0, longest - each.shape[-2])) for each in (above, below)])
