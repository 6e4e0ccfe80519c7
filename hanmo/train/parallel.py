"""Training in several processes: each keeps its share of every parameter (FSDP2), all read the same batches.

Knows torch.distributed. Knows no data and no loop. In one process, every function here does the plain thing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hanmo.model import Model

__all__ = ["agree", "fill", "is_main", "rank", "settle", "share", "started", "sum_over_processes", "whole", "world"]


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
