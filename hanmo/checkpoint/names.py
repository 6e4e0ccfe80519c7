"""Import foreign tensors by tables of names, and export ours.

A row says how one foreign tensor becomes one or more of our parameters, by one of a fixed set of functions, each with
its inverse. Imports are views wherever possible.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hanmo.checkpoint.source import Source
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, TensorMismatch
from hanmo.families import Row

PIECE = 1 << 24
"""Bytes that are compared or converted at a time, where a complete tensor would take too much memory."""

Ways = tuple[Callable[[Tensor, int], list[Tensor]], Callable[[list[Tensor]], Tensor]]


def _all_equal(tensors: list[Tensor]) -> Tensor:
    for tensor in tensors[1:]:
        if not torch.equal(tensor, tensors[0]):
            raise CheckpointError(
                "blocks that came from one shared block differ now; that format holds only one: save as safetensors"
            )
    return tensors[0]


def _join(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


HOW: dict[str, Ways] = {
    "same": (lambda t, n: [t], lambda ts: ts[0]),
    "transpose": (lambda t, n: [t.T], lambda ts: ts[0].T),
    "copy_same": (lambda t, n: [t] * n, _all_equal),
    "copy_transpose": (lambda t, n: [t.T] * n, lambda ts: _all_equal(ts).T),
    # Query, key and value side by side: [3 out], [in, 3 out], and [1, in, 3 out] of a convolution of width 1.
    "split": (lambda t, n: list(t.chunk(n)), _join),
    "split_transpose": (lambda t, n: [part.T for part in t.chunk(n, 1)], lambda ts: _join(ts).T),
    "convolution": (lambda t, n: [t[0].T], lambda ts: ts[0].T[None]),
    "split_convolution": (lambda t, n: [part.T for part in t[0].chunk(n, 1)], lambda ts: _join(ts).T[None]),
}
"""`Row.how` → (foreign tensor, number of ours) → ours, and ours → the foreign tensor."""


def _sines_then_cosines(config: ModelConfig) -> Tensor:
    """Compute the table that transformers' RoFormer keeps: [positions, head_dim], in its own order of steps."""
    stack = config.main
    count, size = stack.positions or 1536, stack.head_dim
    angle = np.arange(count)[:, None] / np.power(10000, 2 * np.arange(size // 2) / size)
    return torch.from_numpy(np.concatenate((np.sin(angle), np.cos(angle)), 1).astype(np.float32))


MADE: dict[str, Callable[[ModelConfig], Tensor]] = {"sines_then_cosines": _sines_then_cosines}
"""`Names.made` → how to make a tensor that some format wants and that is no parameter."""


def import_row(row: Row, tensor: Tensor) -> list[Tensor]:
    """Turn the row's foreign tensor into ours, in the row's order."""
    return HOW[row.how][0](tensor, len(row.ours))


def export_row(row: Row, ours: list[Tensor]) -> Tensor:
    """Turn our tensors into the row's foreign one; raises CheckpointError where it cannot hold them."""
    return HOW[row.how][1](ours)


def foreign_shape(row: Row, shapes: Sequence[torch.Size]) -> tuple[int, ...]:
    """Return the shape that the foreign tensor must have for ours to have these."""
    # The parts are joined as shapes: to join tensors on "meta" torch imports its whole compiler.
    first = shapes[0]
    if row.how.startswith("split"):
        first = torch.Size((sum(shape[0] for shape in shapes), *first[1:]))
    return tuple(HOW[row.how.removeprefix("copy_")][1]([torch.empty(first, device="meta")]).shape)


def rows_of(state: Mapping[str, Tensor], rows: Sequence[Row]) -> list[Row]:
    """Pick the rows that write `state`: every parameter in one of them, and no row with a part missing.

    Raises CheckpointError if a parameter has no name in that format.
    """
    picked = [row for row in rows if all(name in state for name in row.ours)]
    named = {name for row in picked for name in row.ours}
    if lost := [name for name in state if name not in named]:
        raise CheckpointError(
            f"{lost[0]} has no name in that format ({len(lost)} such parameters); save as safetensors, which keeps all"
        )
    return picked


def check_repeats(source: Source, repeats: Mapping[str, str]) -> None:
    """Check that tensors which are left out as repeats of others hold the same bits.

    repeats: foreign name → the foreign name that it repeats, for which the model has a place.
    Raises TensorMismatch naming the pair that differs.
    """
    for name, other in repeats.items():
        if name not in source.tensors or other not in source.tensors:
            continue
        one, two = source.read(name), source.read(other)
        same = (one.dtype, one.shape) == (two.dtype, two.shape)
        if same:
            one, two = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, two))
            same = all(np.array_equal(one[at : at + PIECE], two[at : at + PIECE]) for at in range(0, len(one), PIECE))
        source.release(name)
        source.release(other)
        if not same:
            raise TensorMismatch(
                f"{source.path} holds {name} beside {other}, which config.json says are one tensor, but they differ; "
                f"set tie_word_embeddings to false in config.json if the model was trained so"
            )
