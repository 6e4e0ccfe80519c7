"""Training in several processes: each keeps its shard of every parameter (FSDP2), all read the same batches.

Also what an optimizer needs of sharded tensors (DTensor). In one process every function here is trivial.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from hanmo.errors import ConfigError
from hanmo.nn.stack import Stack


@contextmanager
def started(device: str | torch.device = "cpu") -> Iterator[torch.device]:
    """Join the process group that torchrun started, and leave it at the end; yield this process's device.

    Does nothing without torchrun. GPUs, one a process, use NCCL; CPUs use gloo. Raises ConfigError for no device.
    """
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {str(device)!r}; expected cpu, cuda, cuda:0 …, mps or auto") from None
    if "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        dist.barrier()  # no process closes its connections while another still uses them
    finally:
        dist.destroy_process_group()


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def check_single(what: str) -> None:
    """Raise ConfigError in several processes.   what: that needs one; the subject of a sentence."""
    if world() > 1:
        raise ConfigError(f"{what} runs in one process, not {world()}; start it without torchrun")


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return rank() == 0


@runtime_checkable
class Shardable(Protocol):
    """A module that several processes can train."""

    def empty(self) -> nn.Module:
        """Return an equal module without weights, on "meta"."""


def share(model: nn.Module) -> None:
    """Shard every parameter over the processes, block by block; blocks are gathered when they are computed.

    Raises ConfigError for a module without `empty`, as a `hanmo.model.Model` has it.
    """
    if world() == 1 or isinstance(model, FSDPModule):
        return
    if not isinstance(model, Shardable):
        raise ConfigError(f"a {type(model).__name__} is trained in one process; several processes train a hanmo Model")
    for parameter in model.parameters():  # those of checkpoints may be transposed views, which FSDP cannot shard
        parameter.data = parameter.data.contiguous()
    for stack in [module for module in model.modules() if isinstance(module, Stack)]:
        for block in stack.blocks:
            fully_shard(block)
    fully_shard(model)


def settle(model: nn.Module) -> None:
    """Free parameters that a forward pass left gathered, so that `named_parameters` gives shards."""
    if isinstance(model, FSDPModule):
        model.reshard()


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> None:
    """Copy a full tensor, which every process has, into one that may be sharded."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)


def sum_over_processes(number: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place; all get the sum."""
    if world() > 1:
        dist.all_reduce(number)
    return number


def agree(value: Any) -> Any:
    """Return the first process's value in every process."""
    if world() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found)
    return found[0]


def local(tensor: Tensor) -> Tensor:
    """Return a tensor's shard in this process; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor, axis: int | None = None) -> bool:
    """Whether a tensor is sharded along an axis, or along any if it is None."""
    return isinstance(tensor, DTensor) and any(placement.is_shard(axis) for placement in tensor.placements)


def shard_place(tensor: Tensor) -> tuple[int, ...]:
    """Return this process's position among a tensor's shards; replicas of a shard have the same."""
    if not isinstance(tensor, DTensor):
        return ()
    places = tensor.device_mesh.get_coordinate() or ()
    return tuple(at for at, placement in zip(places, tensor.placements, strict=False) if placement.is_shard())


def sum_over_shards(tensor: Tensor, total: Tensor, *, axis: int | None = None) -> Tensor:
    """Sum a total, in place, over the shards of `tensor` along an axis, or along any if it is None."""
    if isinstance(tensor, DTensor):
        for dimension, placement in enumerate(tensor.placements):
            if placement.is_shard(axis):
                dist.all_reduce(total, group=tensor.device_mesh.get_group(dimension))
    return total


def zeros(tensor: Tensor, *, reduced: tuple[int, ...] = ()) -> Tensor:
    """Return float32 zeros shaped and sharded like a tensor, of size 1 along the reduced axes."""
    made = torch.zeros_like(local(tensor), dtype=torch.float32)
    if reduced:
        made = made.new_zeros([1 if axis in reduced else size for axis, size in enumerate(made.shape)])
    if not isinstance(tensor, DTensor):
        return made
    placements = [Replicate() if any(map(p.is_shard, reduced)) else p for p in tensor.placements]
    whole = torch.Size(1 if axis in reduced else size for axis, size in enumerate(tensor.shape))
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(made, tensor.device_mesh, placements, run_check=False, shape=whole, stride=stride)
