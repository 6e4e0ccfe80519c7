"""What an optimizer must know of tensors that are cut over processes (DTensor, as FSDP2 makes them).

Knows placements and sums over them; a plain tensor is its own only shard. Knows nothing of models.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

__all__ = ["is_sharded", "local", "shard_place", "sum_over_shards", "zeros"]


def local(tensor: Tensor) -> Tensor:
    """Give the part of a tensor that lies in this process; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor, axis: int | None = None) -> bool:
    """Say whether a tensor is cut over processes along an axis, or along any if it is None."""
    return isinstance(tensor, DTensor) and any(placement.is_shard(axis) for placement in tensor.placements)


def shard_place(tensor: Tensor) -> tuple[int, ...]:
    """Give this process's place among a tensor's shards; copies of the same shard give the same."""
    if not isinstance(tensor, DTensor):
        return ()
    places = tensor.device_mesh.get_coordinate() or ()
    return tuple(at for at, placement in zip(places, tensor.placements, strict=False) if placement.is_shard())


def sum_over_shards(tensor: Tensor, total: Tensor, *, axis: int | None = None) -> Tensor:
    """Add up, in place, a total over the shards that cut `tensor` along an axis, or along any if it is None."""
    if isinstance(tensor, DTensor):
        for dimension, placement in enumerate(tensor.placements):
            if placement.is_shard(axis):
                dist.all_reduce(total, group=tensor.device_mesh.get_group(dimension))
    return total


def zeros(tensor: Tensor, *, reduced: tuple[int, ...] = ()) -> Tensor:
    """Make float32 zeros of a tensor's shape, 1 wide along the reduced axes and cut like it along the others."""
    part = local(tensor)
    if reduced:
        shape = [1 if axis in reduced else size for axis, size in enumerate(part.shape)]
        made = part.new_zeros(shape, dtype=torch.float32)
    else:
        made = torch.zeros_like(part, dtype=torch.float32)
    if not isinstance(tensor, DTensor):
        return made
    placements = [
        Replicate() if any(placement.is_shard(axis) for axis in reduced) else placement
        for placement in tensor.placements
    ]
    whole = torch.Size(1 if axis in reduced else size for axis, size in enumerate(tensor.shape))
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(made, tensor.device_mesh, placements, run_check=False, shape=whole, stride=stride)
