"""Checkpoints that several processes write together and any number of processes can read.

    OUT/last-00001200/    state.pt, numbers; shards/, tensors by torch.distributed.checkpoint; vocab.txt

`torch.distributed.checkpoint` keeps its index as a pickle: resume only runs that you trust.
"""

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hanmo.errors import CheckpointError
from hanmo.model import Model
from hanmo.training import distributed
from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.step import Updates

__all__ = ["SHARDS", "gathered", "read", "restore", "write"]

SHARDS = "shards"


def write(folder: Path, updates: Updates, state: dict[str, Any], *, beside: Iterable[Path]) -> None:
    """Write a checkpoint under a temporary name and rename it when all processes are done.

    Raises CheckpointError if a process could not write.
    """
    tensors, numbers = _parts(updates)
    made = folder.with_name(f".{folder.name}.{0:012x}.partial")  # one name for all processes
    if distributed.is_main():
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        torch.save(state | {"numbers": numbers}, made / "state.pt")
        for path in beside:
            shutil.copyfile(path, made / path.name)
    distributed.agree(None)
    try:
        save(tensors, checkpoint_id=made / SHARDS)
    except CheckpointException as error:
        raise CheckpointError(f"{folder} could not be written: {error}; free space and resume") from None
    if distributed.is_main():
        made.rename(folder)
    distributed.agree(None)


def read(folder: Path, updates: Updates, state: dict[str, Any]) -> None:
    """Restore weights, optimizer state and averages from a checkpoint of any number of processes."""
    _begin(updates)
    tensors, _ = _parts(updates)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # if one process reads
        load(tensors, checkpoint_id=folder / SHARDS, no_dist=distributed.world() == 1)
    _set_numbers(updates, state["numbers"])


def restore(updates: Updates, state: dict[str, Any]) -> None:
    """Restore optimizer state and averages from the state of a run in one process."""
    if distributed.world() == 1:
        updates.optimizer.load_state_dict(state["optimizer"])
        updates.restore(state)
        return
    _begin(updates)
    tensors, _ = _parts(updates)
    saved: dict[str, Any] = _named(state["optimizer"]["state"])
    if state["average"] is not None:
        saved |= {f"average.{place}": tensor for place, tensor in enumerate(state["average"]["averages"])}
        saved["average.updates"] = state["average"]["updates"]
    saved |= {"loss.sum": state["loss"]["sum"], "loss.count": state["loss"]["count"]}
    for name, tensor in tensors.items():
        if name in saved:
            distributed.fill(tensor, saved[name])
    _set_numbers(updates, {name: value for name, value in saved.items() if not isinstance(value, Tensor)})


def gathered(model: nn.Module) -> nn.Module:
    """Return a model of full parameters, on the CPU of the first process; a model of one process as it is."""
    if distributed.world() == 1:
        return model
    assert isinstance(model, Model)  # see `distributed.share`
    with torch.device("meta"):
        made = Model(model.config)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if distributed.is_main():
        made.load_state_dict(state, assign=True)
    return made


def _parts(updates: Updates) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return every tensor of a run by name, and the numbers."""
    named: dict[str, Any] = {f"model.{name}": p.data for name, p in updates.model.named_parameters()}
    named |= _named(updates.optimizer.state_dict()["state"])
    if updates.average is not None:
        kept = updates.average.state_dict()
        named |= {f"average.{place}": tensor for place, tensor in enumerate(kept["averages"])}
        named["average.updates"] = kept["updates"]
    named |= {"loss.sum": updates.sum, "loss.count": updates.count}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in named.items() if name not in tensors}


def _named(state: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return {f"optimizer.{place}.{key}": value for place, kept in state.items() for key, value in kept.items()}


def _begin(updates: Updates) -> None:
    """Allocate the optimizer's state: other optimizers than AdaFactor do so in a step, here with a rate of 0."""
    optimizer = updates.optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, AdaFactor):
                optimizer.start(parameter, group)
            else:
                parameter.grad = torch.zeros_like(parameter)
        group["lr"] = 0.0  # each step sets it
    if not isinstance(optimizer, AdaFactor):
        optimizer.step()
        optimizer.zero_grad()


def _set_numbers(updates: Updates, numbers: dict[str, Any]) -> None:
    state = updates.optimizer.state_dict()["state"]  # holds the optimizer's own dicts
    for name, value in numbers.items():
        part, place, *key = name.split(".")
        if part == "optimizer":
            state[int(place)][key[0]] = value
    updates.count = numbers["loss.count"]
    if updates.average is not None:
        updates.average.load_state_dict({**updates.average.state_dict(), "updates": numbers["average.updates"]})
