"""What computes a model's outputs behind a cache that is kept: torch over a network.

`Runner` says what the prefix needs of it; `_rounded` has the other one. Knows no texts and nothing of what is the same.
"""

from typing import Any, Protocol

import numpy.typing as npt
import torch

from hanmo.compat.bert4keras._forward import forward
from hanmo.compat.bert4keras.configs import Settings
from hanmo.inference.fused.float32_rows import fused_step
from hanmo.model import Model
from hanmo.nn.cache import Cache

Array = npt.NDArray[Any]


class Kept(Protocol):
    """The keys and values of some rows, up to one length."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    @property
    def capacity(self) -> int:
        """How many tokens of each have room."""

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""


class Runner(Protocol):
    """What computes a model's outputs."""

    @property
    def token_bytes(self) -> int:
        """How many bytes the keys and values of one token take."""

    def stamp(self) -> int:
        """Give another number once the weights have changed."""

    def new(self, rows: int, capacity: int) -> Any:
        """Make room for so many tokens of so many rows."""

    def take(self, kept: Any, rows: Array | None, capacity: int) -> None:
        """Keep these rows in this order, in room for so many tokens; None keeps them as they are."""

    def run(self, inputs: dict[str, Array], *, start: int = 0, kept: Any = None, last: bool = False) -> list[Array]:
        """Compute the outputs of the tokens from `start` on, where `kept` holds those before and takes up these.

        last: of the last position alone, [rows, 1, …], where an output has one for each.
        """


class TorchRunner:
    """Runs a network by torch."""

    def __init__(self, network: Model, settings: Settings) -> None:
        self._network, self._settings = network, settings
        network.main.fused_step = fused_step

    @property
    def token_bytes(self) -> int:
        """How many bytes the keys and values of one token take."""
        stack = self._network.main.config
        return (
            stack.num_layers
            * stack.num_heads
            * (stack.key_dim + stack.head_dim)
            * self._network.token.weight.element_size()
        )

    def stamp(self) -> int:
        """Give another number once a parameter was replaced or written to."""
        return stamp(self._network)

    def new(self, rows: int, capacity: int) -> Cache:
        """Make a cache."""
        return self._network.new_cache(rows=rows, capacity=capacity)

    def take(self, kept: Cache, rows: Array | None, capacity: int) -> None:
        """Move a cache's rows into new room."""
        index = None if rows is None else torch.from_numpy(rows)
        for tensors in (kept.keys, kept.values):
            for layer, old in enumerate(tensors):
                filled = old[:, :, : kept.length]
                filled = filled if index is None else filled[index]
                new = old.new_empty(*filled.shape[:2], capacity, filled.shape[3])
                new[:, :, : kept.length] = filled
                tensors[layer] = new
        kept.capacity = capacity
        if index is not None:
            kept.keys, keys = [], kept.keys
            kept.values, values = [], kept.values
            kept.reorder(index)
            kept.keys, kept.values = keys, values

    def run(self, inputs: dict[str, Array], *, start: int = 0, kept: Any = None, last: bool = False) -> list[Array]:
        """Run the network."""
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        outputs = forward(self._network, self._settings, tensors, start=start, cache=kept, last=last)
        return [output.numpy() for output in outputs]


def stamp(network: Model) -> int:
    """Give another number once a parameter was replaced or written to."""
    return hash(tuple((id(parameter), parameter._version) for parameter in network.parameters()))
