"""Tables of names applied both ways: foreign tensors to ours, and ours back.

A row says how one foreign tensor becomes one or more of our parameters, by one of a closed set of ways, each with its
inverse. Everything here is a view where it can be: nothing is copied on the way in.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from hanmo.errors import CheckpointError
from hanmo.families import Row

Ways = tuple[Callable[[Tensor, int], list[Tensor]], Callable[[list[Tensor]], Tensor]]


def _all_equal(tensors: list[Tensor]) -> Tensor:
    for tensor in tensors[1:]:
        if not torch.equal(tensor, tensors[0]):
            raise CheckpointError(
                "blocks that came from one shared block differ now; that format holds only one: save as safetensors"
            )
    return tensors[0]


# how: (foreign tensor, number of ours) → ours, and back.
HOW: dict[str, Ways] = {
    "same": (lambda t, n: [t], lambda ts: ts[0]),
    "transpose": (lambda t, n: [t.T], lambda ts: ts[0].T),
    "copy_same": (lambda t, n: [t] * n, _all_equal),
    "copy_transpose": (lambda t, n: [t.T] * n, lambda ts: _all_equal(ts).T),
    # Query, key and value side by side: [3 out], [in, 3 out], and [1, in, 3 out] of a convolution of width 1.
    "split": (lambda t, n: list(t.chunk(n)), lambda ts: torch.cat(ts)),
    "split_transpose": (lambda t, n: [part.T for part in t.chunk(n, 1)], lambda ts: torch.cat(ts).T),
    "convolution": (lambda t, n: [t[0].T], lambda ts: ts[0].T[None]),
    "split_convolution": (lambda t, n: [part.T for part in t[0].chunk(n, 1)], lambda ts: torch.cat(ts).T[None]),
}


def take(row: Row, tensor: Tensor) -> list[Tensor]:
    """Turn the row's foreign tensor into ours, in the row's order."""
    return HOW[row.how][0](tensor, len(row.ours))


def give(row: Row, ours: list[Tensor]) -> Tensor:
    """Turn our tensors into the row's foreign one; raises CheckpointError where it cannot hold them."""
    return HOW[row.how][1](ours)


def foreign_shape(row: Row, shapes: list[torch.Size]) -> tuple[int, ...]:
    """Tell the shape the foreign tensor must have for ours to have these."""
    with torch.device("meta"):
        ours = [torch.empty(shape) for shape in shapes]
        way = "same" if row.how == "copy_same" else "transpose" if row.how == "copy_transpose" else row.how
        return tuple(HOW[way][1](ours).shape)


def export(state: Mapping[str, Tensor], rows: list[Row]) -> Iterator[tuple[str, Tensor]]:
    """Give every foreign tensor that the rows make of `state`, one at a time.

    Rows of parameters the model does not have are passed over. Raises CheckpointError if a parameter has no row.
    """
    used: set[str] = set()
    for row in rows:
        if all(name in state for name in row.ours):
            used.update(row.ours)
            yield row.theirs, give(row, [state[name].detach() for name in row.ours])
    if lost := [name for name in state if name not in used]:
        raise CheckpointError(
            f"{lost[0]} has no name in that format ({len(lost)} such parameters); save as safetensors, which keeps all"
        )
