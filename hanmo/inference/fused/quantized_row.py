"""The keys and values of one row of the quantized step, as attention_blocks.py says. Knows no weights."""

import numpy as np

from hanmo.checkpoint.source import Array
from hanmo.config import StackConfig
from hanmo.inference.fused.packing import LANES

__all__ = ["FusedRow"]

WORDS = "key", "value"


class FusedRow:
    """One row's keys and values in bfloat16.   length: number of its tokens.

    prefix: number of its first tokens that see each other, with a prefix mask.
    """

    def __init__(self, stack: StackConfig) -> None:
        self._stack, self.length, self.prefix = stack, 0, 0
        self.cache = self._empty(1)
        self._memory, self.memory_at = np.empty(0, np.uint16), (0, 0, 0)

    @property
    def room(self) -> int:
        """Number of tokens that the cache can hold."""
        return self.cache.shape[3] * LANES

    def reserve(self, count: int) -> None:
        """Make room for so many tokens more."""
        if self.length + count > self.room:
            old, self.cache = self.cache, self._empty(self.length + count)
            self._fill(old)

    def copy(self, length: int) -> "FusedRow":
        """Return a new row with the first `length` tokens."""
        new = FusedRow(self._stack)
        new.length, new.prefix, new.cache = length, self.prefix, new._empty(length + 1)
        new._memory, new.memory_at = self._memory, self.memory_at
        new._fill(self.cache)
        return new

    def set_memory(self, keys: Array, values: Array) -> None:
        """Attend to keys and values of an encoder's output, [layer, heads, tokens, size] each, float32."""
        layers, heads, count, size = keys.shape
        blocks = -(-count // LANES)
        self._memory = np.zeros((layers, 2, heads, blocks, LANES * size), np.uint16)
        for word, (state, shape, order) in enumerate(
            (
                (keys, (blocks, LANES, size // 2, 2), (0, 1, 2, 4, 3, 5)),
                (values, (blocks, LANES // 2, 2, size), (0, 1, 2, 3, 5, 4)),
            )
        ):
            padded = np.pad(state, ((0, 0), (0, 0), (0, blocks * LANES - count), (0, 0)))
            bits = np.ascontiguousarray(padded, np.float32).view(np.uint32)
            halves = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
            ordered = halves.reshape(layers, heads, *shape).transpose(order)
            self._memory[:, word] = ordered.reshape(layers, heads, blocks, -1)
        self.memory_at = self._memory.ctypes.data, blocks * LANES, count

    def states(self, length: int) -> dict[str, Array]:
        """Give the first tokens' keys and values as OpenVINO's states, [1, heads, length, size], float32, by name."""
        layers, _, heads, blocks, _ = self.cache.shape
        size = self._stack.head_dim
        wide = (self.cache.astype(np.uint32) << 16).view(np.float32)
        keys = wide[:, 0].reshape(layers, heads, blocks, size // 2, LANES, 2).transpose(0, 1, 2, 4, 3, 5)
        values = wide[:, 1].reshape(layers, heads, blocks, LANES // 2, size, 2).transpose(0, 1, 2, 3, 5, 4)
        return {
            f"cache.{layer}.{word}": np.ascontiguousarray(state[layer].reshape(1, heads, -1, size)[:, :, :length])
            for word, state in zip(WORDS, (keys, values), strict=True)
            for layer in range(layers)
        }

    def _fill(self, old: Array) -> None:
        used = -(-self.length // LANES)
        self.cache[:, :, :, :used] = old[:, :, :, :used]

    def _empty(self, least: int) -> Array:
        """Make room for a quarter more than is needed, and no more: memory counts before it is used."""
        stack = self._stack
        room = min(max(least, stack.context or least), 32 + least * 5 // 4)
        blocks = -(-room // LANES)
        return np.zeros((stack.num_layers, 2, stack.num_heads, blocks, LANES * stack.head_dim), np.uint16)
