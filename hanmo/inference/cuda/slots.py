"""The memory of rows that are stepped together, at addresses that never change, as captured graphs need it.

Knows no model's computation. Rows have different lengths; none is padded.

    columns of a row     prompt │ written │ slot: the new token │ free
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hanmo.model import Model
from hanmo.nn.cache import Cache

BUCKET = 128  # the fewest columns of a step
LARGE = 1024  # buckets double up to here, and then grow by this


class Slots(Cache):
    """Memory of rows and the inputs of their steps.

    ids: [rows] to append.   slot: [rows], the columns they go to, which are the lengths of the rows.
    memory_mask: [rows, memory], False for padding.   graphs: by (rows, columns), captured on `stream` in `pool`.
    """

    def __init__(self, model: Model, rows: int, capacity: int, memory: int) -> None:
        stack, weight = model.main.config, model.token.weight
        super().__init__(stack, rows=rows, capacity=capacity, dtype=weight.dtype, device=weight.device)
        self.memory_capacity = memory
        if memory:
            other = Cache(stack, rows=rows, capacity=memory, dtype=weight.dtype, device=weight.device)
            self.memory = list(zip(other.keys, other.values, strict=True))
            self.memory_mask = torch.zeros(rows, memory, dtype=torch.bool, device=weight.device)
        self.ids = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.slot = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.stream: Any = None  # of the captures; it and the pool live as long as the graphs
        self.pool: Any = None
        self.cleared()

    def cleared(self) -> "Slots":
        """Zero all keys and values, since a masked NaN would still spoil a sum, and all lengths."""
        for kept in [*_columns(self, self.capacity), *_memory(self), self.slot]:
            kept.zero_()
        return self

    def fill(self, cache: Cache, rows: Sequence[int]) -> None:
        """Make rows[i] a copy of row i of a prefill's cache, without its padding."""
        to = torch.tensor(rows, device=self.slot.device)
        length, mask = cache.length, cache.tokens.mask
        self.slot[to] = length if mask is None else mask.sum(1)
        for ours, theirs in zip(_columns(self, self.capacity), _columns(cache, length), strict=True):
            if mask is not None:  # what follows a short row is not read before it is written
                columns = torch.arange(length, device=to.device) + length - mask.sum(1, keepdim=True)
                theirs = theirs.take_along_dim(columns.clamp(max=length - 1)[:, None, :, None], 2)
            ours.index_fill_(0, to, 0)
            ours[to, :, :length] = theirs
        for ours, theirs in zip(_memory(self), _memory(cache), strict=True):
            ours.index_fill_(0, to, 0)
            ours[to, :, : theirs.shape[2]] = theirs
        if self.memory_mask is not None and (real := cache.real_memory()) is not None:
            self.memory_mask[to] = False
            self.memory_mask[to, : real.shape[1]] = real

    def take(self, other: "Slots", rows: Sequence[tuple[int, int]], length: int) -> None:
        """Copy rows (to, from) of other slots, or of these.   length: columns to copy; those behind them stay."""
        if not rows:
            return
        to, of = torch.tensor(rows, device=self.slot.device).unbind(1)
        self.slot[to] = other.slot[of]
        for ours, theirs in zip(_columns(self, length), _columns(other, length), strict=True):
            ours[to] = theirs[of]
        width = min(self.memory_capacity, other.memory_capacity)
        for ours, theirs in zip(_memory(self), _memory(other), strict=True):
            ours[to, :, :width] = theirs[of, :, :width]
        if self.memory_mask is not None and other.memory_mask is not None:
            self.memory_mask[to, :width] = other.memory_mask[of, :width]

    def window(self, rows: int, capacity: int) -> "Slots":
        """View the first rows and columns, as the cache of a step."""
        view = copy.copy(self)
        view.capacity = capacity
        view.keys = [keys[:rows, :, :capacity] for keys in self.keys]
        view.values = [values[:rows, :, :capacity] for values in self.values]
        view.memory = [pair and (pair[0][:rows], pair[1][:rows]) for pair in self.memory]
        view.memory_mask = None if self.memory_mask is None else self.memory_mask[:rows]
        view.ids, view.slot = self.ids[:rows], self.slot[:rows]
        return view

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one new key and value of each row to its slot and return all columns: [b, heads, capacity, …]."""
        rows = torch.arange(len(keys), device=keys.device)
        self.keys[layer][rows, :, self.slot] = keys[:, :, 0]
        self.values[layer][rows, :, self.slot] = values[:, :, 0]
        return self.keys[layer], self.values[layer]


def _columns(cache: Cache, length: int) -> list[Tensor]:
    """List the first `length` columns of a cache's keys and values."""
    return [each[:, :, :length] for each in (*cache.keys, *cache.values)]


def _memory(cache: Cache) -> list[Tensor]:
    """List the keys and values of a cache's memory."""
    return [each for pair in cache.memory if pair for each in pair]


def row_bucket(rows: int) -> int:
    """Round a number of rows up to a power of two: idle rows cost less than a graph for each number."""
    return 1 << (rows - 1).bit_length()


def column_bucket(columns: int) -> int:
    """Round a number of columns up, so that short texts read short buffers and long ones need few graphs."""
    if columns > LARGE:
        return -(-columns // LARGE) * LARGE
    return max(BUCKET, 1 << (columns - 1).bit_length())
