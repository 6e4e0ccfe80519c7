"""Training in several processes: each keeps its share of every parameter (FSDP2), all read the same batches.

Also what an optimizer must know of tensors that are cut over processes (DTensor). Knows torch.distributed. Knows no
data and no loop. In one process, every function here does the plain thing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from hanmo.model import Model

__all__ = [
    "agree",
    "fill",
    "is_main",
    "is_sharded",
    "local",
    "rank",
    "settle",
    "shard_place",
    "share",
    "started",
    "sum_over_processes",
    "sum_over_shards",
    "whole",
    "world",
    "zeros",
]


@contextmanager
def started(device: str | torch.device = "cpu") -> Iterator[torch.device]:
    """Join the processes that torchrun started, and leave them at the end; give this one's device.

    Without torchrun nothing happens. NCCL joins GPUs, each process taking its own, and gloo CPUs.
    """
    device = torch.device(device)
    if "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        dist.barrier()  # none takes its ends of the connections away while another still talks
    finally:
        dist.destroy_process_group()


def world() -> int:
    """Give the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Give this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Say whether this process is the one that writes and speaks."""
    return rank() == 0


def share(model: Model) -> None:
    """Cut every parameter over the processes, block by block; blocks are gathered when they are computed."""
    if world() == 1 or isinstance(model, FSDPModule):
        return
    for parameter in model.parameters():  # those of checkpoints may lie the other way round, which FSDP cannot cut
        parameter.data = parameter.data.contiguous()
    for stack in (model.encoder, model.decoder):
        for block in stack.blocks if stack is not None else ():
            fully_shard(block)
    fully_shard(model)


def settle(model: Model) -> None:
    """Take parameters that a forward left gathered apart again, so that `named_parameters` gives shares."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Give all of a tensor that may be cut over processes; all of them must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> None:
    """Copy a whole tensor into one that may be cut over processes; each has the values and keeps its share."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)


def sum_over_processes(number: Tensor) -> Tensor:
    """Add up a tensor over the processes; all get the sum."""
    if world() > 1:
        dist.all_reduce(number)
    return number


def agree(value: Any) -> Any:
    """Give every process what the first one has."""
    if world() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found)
    return found[0]


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
