"""Checkpoints of a training run: complete folders, written under a temporary name and renamed.

    OUT/last-00001200/    a Hanmo folder: hanmo.json, model.safetensors, vocab.txt; and state.pt, for resuming
    OUT/best-00001000/    the same without state.pt
    OUT/best              a symbolic link to it, where the system has these

Older ones are deleted after the rename. Of a model with adapters only these are kept, in adapters.safetensors, with
adapter_config.json, which names the base model. Of a module that is not a Hanmo model, "last" holds its parameters in
model.safetensors, and "best" what the caller's `save` writes.

If several processes train, each writes its tensors of "last" into OUT/last-…/shards by `torch.distributed.checkpoint`;
any number of processes can read them. Its index is a pickle: resume only runs that you trust.
"""

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from hanmo.checkpoint.load import as_tensor
from hanmo.checkpoint.open import ADAPTERS, find_checkpoints
from hanmo.checkpoint.safetensors import Safetensors
from hanmo.checkpoint.save import save
from hanmo.checkpoint.staged import atomic_folder, exclusive, is_disk_full
from hanmo.errors import CheckpointError, ConfigError, CorruptFile, HanmoError, MissingFile, TensorMismatch
from hanmo.files import errors_as, open_file
from hanmo.model import Model
from hanmo.training import distributed
from hanmo.training.lora import has_lora, save_lora
from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.step import Updates

Save: TypeAlias = Callable[[Any, Path], object]

_OTHER = "; resume from another checkpoint"
_SHARDS = "shards"


@dataclass
class Place:
    """The position of a run; part of the checkpoint."""

    step: int = 0  # updates made
    epoch: int = 0  # of the next batch
    batch: int = 0  # its number in the epoch
    total: int | None = None  # updates of the whole run; None until the speed is known
    seconds: float = 0.0  # spent, over all processes
    tokens: int = 0  # read
    skipped: int = 0  # batches whose gradient was not finite
    best: float | None = None
    trained: float | None = None  # best score after step 0
    worse: int = 0  # evaluations since then
    measured: int = -1  # step of the last evaluation
    samples: int | None = None  # bytes of samples.txt


class Checkpoints:
    """The last and the best checkpoint of one run, under `out`; save, same: as for `fit`."""

    def __init__(
        self, out: Path, updates: Updates, beside: list[Path], save: Save | None, same: Mapping[str, str] | None
    ) -> None:
        self._out, self._updates, self._model, self._beside = out, updates, updates.model, beside
        self._save, self._same = save, dict(same or {})

    def save_best(self, step: int) -> None:
        """Save the weights as the best."""
        model = self._model
        if distributed.world() > 1:  # full parameters, on the CPU of the first process
            assert isinstance(model, distributed.Shardable)  # see `distributed.share`
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_model_state_dict(model, options=options)
            model = model.empty()
            if distributed.is_main():
                model.load_state_dict(state, assign=True)
        save_checkpoint(self._out, "best", step, model, beside=self._beside, write=self._save)

    def forget_untrained(self) -> None:
        """Delete the best checkpoint of a failed run if it holds the initial weights and there is no other."""
        best, last = newest(self._out, "best"), newest(self._out, "last")
        if distributed.is_main() and best is not None and best.name == "best-00000000" and last is None:
            (self._out / "best").unlink(missing_ok=True)
            shutil.rmtree(best)

    def save_last(self, step: int, place: dict[str, Any]) -> None:
        """Save the weights and everything that resuming needs; place: the run's position, numbers by name."""
        updates = self._updates
        generators = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if updates.sum.is_cuda else [])]
        state = {"place": place, "settings": asdict(updates.args), "generators": generators, "same": self._same}
        tensors = None
        if distributed.world() > 1:
            found = _named(updates)
            tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
            state["numbers"] = {name: value for name, value in found.items() if name not in tensors}
        else:
            state |= {"optimizer": updates.optimizer.state_dict(), **updates.state()}
        save_checkpoint(self._out, "last", step, self._model, state=state, beside=self._beside, shards=tensors)

    def restore(self, folder: Path) -> dict[str, Any]:
        """Restore what `save_last` saved; return the place.

        Raises CheckpointError if the run's arguments differ, or what has to be the same.
        """
        state, updates = read_state(folder), self._updates
        with errors_as(CorruptFile, f"{folder} does not hold what training resumes from", advice=_OTHER):
            if other := updates.args.differences(state["settings"]):
                was, now = state["settings"].get(other[0]), getattr(updates.args, other[0])
                raise CheckpointError(
                    f"{folder} was trained with {other[0]}={was}, now it is {now}; resume with the same"
                )
            before = state.get("same", {})
            if changed := [name for name, value in self._same.items() if before.get(name, value) != value]:
                raise CheckpointError(
                    f"{folder} was trained with other {changed[0]}; resume with the same, or begin in another folder"
                )
            if (shards := folder / _SHARDS).is_dir():
                _restore_named(updates, state["numbers"], shards)
            else:
                fill_from(self._model, folder)
                if distributed.world() == 1:
                    updates.optimizer.load_state_dict(state["optimizer"])
                    updates.restore(state)
                else:
                    _restore_named(updates, _named(updates, state), None)
            if len(generators := state["generators"]) and distributed.is_main():  # the other processes keep theirs
                torch.set_rng_state(generators[0])
                if updates.sum.is_cuda and len(generators) > 1:
                    torch.cuda.set_rng_state(generators[1])
            return dict(state["place"])


def save_checkpoint(
    out: Path,
    kind: str,
    step: int,
    model: nn.Module,
    *,
    state: dict[str, Any] | None = None,
    beside: Iterable[Path] = (),
    write: Save | None = None,
    shards: dict[str, Tensor] | None = None,
) -> Path:
    """Write OUT/KIND-STEP and delete the older ones of this kind; every process calls it.

    state: tensors, numbers, strings, lists and dicts.   beside: files to copy in, such as vocab.txt.
    write: (model, folder) → writes the weights, instead of the format for the model's class.
    shards: tensors that all processes write, instead of the weights.
    """
    folder, main = out / f"{kind}-{step:08d}", distributed.is_main()
    with atomic_folder(folder, overwrite=True) if main else nullcontext() as place:
        made: Path = distributed.agree(place)
        if shards is not None:
            try:
                save_shards(shards, checkpoint_id=made / _SHARDS)
            except CheckpointException as error:
                raise CheckpointError(f"{folder} could not be written: {error}; free space and resume") from None
        elif main:
            _write_weights(model, made, write)
        if main:
            for file in beside:
                shutil.copyfile(file, made / file.name)
            if state is not None:
                torch.save(state, made / "state.pt")
    if main:
        if kind == "best":
            with suppress(OSError):  # a system without symbolic links
                link = out / ".best.link"
                link.unlink(missing_ok=True)
                link.symlink_to(folder.name, target_is_directory=True)
                os.replace(link, out / "best")
        for old in _folders(out, kind)[:-1]:
            shutil.rmtree(old, ignore_errors=True)
    distributed.agree(None)  # the other processes wait
    return folder


def _write_weights(model: nn.Module, folder: Path, write: Save | None) -> None:
    if write is not None:
        write(model, folder)
    elif has_lora(model):
        save_lora(model, folder / ADAPTERS)
    elif isinstance(model, Model):
        save(model, folder)
    else:
        tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def newest(out: Path, kind: str) -> Path | None:
    """Return the checkpoint of the highest step, or None."""
    return next(reversed(_folders(out, kind)), None)


def _folders(out: Path, kind: str) -> list[Path]:
    named = re.compile(rf"{kind}-\d{{8}}")
    return sorted(path for path in out.glob(f"{kind}-*") if path.is_dir() and named.fullmatch(path.name))


def recover(out: Path) -> None:
    """Clean up after a process that was killed while saving: restore old folders, delete unfinished ones."""
    for path in sorted(out.glob(".*-*.*")) if distributed.is_main() else ():
        # Weights inside such a folder are staged too, hence names with two suffixes.
        if found := re.fullmatch(r"\.?\.((?:last|best)-\d{8})((?:\.[0-9a-f]{12}\.(?:old|partial))+)", path.name):
            place = out / found[1]
            if re.fullmatch(r"\.[0-9a-f]{12}\.old", found[2]) and not place.exists():
                path.rename(place)
            else:
                shutil.rmtree(path)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; remove what a run that is refused before it begins has put there.

    Raises DataError, naming the process that holds the lock; ConfigError for a file, and a folder that holds a model.
    """
    if not distributed.is_main():
        yield
        return
    fresh, lock, begun = not out.exists(), out / ".lock", [out / name for name in ("chosen.json", "log.jsonl")]
    if not fresh and not out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, a file; expected a folder")
    if not any(path.exists() for path in begun) and find_checkpoints(out) != [out]:
        raise ConfigError(f"out is {str(out)!r}, which holds a model; expected a new folder, or that of a run")
    out.mkdir(parents=True, exist_ok=True)
    before = {*out.iterdir(), lock}
    try:
        with exclusive(lock, out, nested=True):
            try:
                yield
            except HanmoError:
                if not any(path.exists() for path in begun):
                    for path in set(out.iterdir()) - before:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                raise
    finally:
        if fresh:
            with suppress(OSError):  # it is not empty
                out.rmdir()


@contextmanager
def guarded(out: Path) -> Iterator[None]:
    """Turn the errors of torch and the system for a file that cannot be written into a CheckpointError."""
    try:
        yield
    except HanmoError:
        raise
    except (OSError, RuntimeError) as error:
        if not is_disk_full(error):
            raise
        last = newest(out, "last")
        then = f"{last} is complete: free space and resume" if last else "nothing is saved yet: free space, begin again"
        raise CheckpointError(
            f"{out} could not be written to ({str(error).splitlines()[0]}): the disk is full, or forbids so large a "
            f"file; {then}"
        ) from error


def read_state(folder: Path) -> dict[str, Any]:
    """Read state.pt without running code from it.

    Raises MissingFile, and CorruptFile if it is damaged or holds more than tensors and numbers.
    """
    path = folder / "state.pt"
    if not path.is_file():
        raise MissingFile(f"{path} is missing, so training cannot go on from it; name a last-* checkpoint")
    with open_file(path) as file, errors_as(CorruptFile, f"{path} cannot be read", advice=_OTHER):
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise CorruptFile(f"{path} holds a {type(state).__name__}; expected what save_last wrote{_OTHER}")
    return state


def fill_from(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into a model on any device, sharded or not.

    Raises TensorMismatch if names or shapes are not those of the model's trained parameters.
    """
    path = folder / ADAPTERS
    ours = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not path.is_file():
        path, ours = folder / "model.safetensors", dict(model.named_parameters())
    with Safetensors(path) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
        wrong = sorted(set(shapes) ^ set(ours)) or [name for name in ours if ours[name].shape != shapes[name]]
        if wrong:
            raise TensorMismatch(
                f"{folder} does not fit the model: {wrong[0]} differs; resume with the same configuration"
            )
        for name, parameter in ours.items():
            distributed.fill(parameter, as_tensor(file.read(name), file.tensors[name].dtype))


def _named(updates: Updates, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Name the tensors and numbers of a run, or those in the state that one process saved (without the weights)."""
    named: dict[str, Any] = {}
    if state is None:
        named = {f"model.{name}": parameter.data for name, parameter in updates.model.named_parameters()}
        state = {"optimizer": updates.optimizer.state_dict(), **updates.state()}
    for place, kept in state["optimizer"]["state"].items():
        named |= {f"optimizer.{place}.{key}": value for key, value in kept.items()}
    if (average := state["average"]) is not None:
        named |= {f"average.{place}": tensor for place, tensor in enumerate(average["averages"])}
        named["average.updates"] = average["updates"]
    return named | {f"loss.{key}": value for key, value in state["loss"].items()}


def _restore_named(updates: Updates, saved: dict[str, Any], shards: Path | None) -> None:
    """Restore tensors from a folder of shards, else from `saved`, and numbers from `saved`."""
    optimizer = updates.optimizer
    for group in optimizer.param_groups:  # allocate the state: AdaFactor's, others' by a step with a rate of 0
        for parameter in group["params"]:
            if isinstance(optimizer, AdaFactor):
                optimizer.start(parameter, group)
            else:
                parameter.grad = torch.zeros_like(parameter)
        group["lr"] = 0.0  # each step sets it
    if not isinstance(optimizer, AdaFactor):
        optimizer.step()
        optimizer.zero_grad()
    tensors = {name: value for name, value in _named(updates).items() if isinstance(value, Tensor)}
    if shards is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # if one process reads
            load_shards(tensors, checkpoint_id=shards, no_dist=distributed.world() == 1)
    for name in tensors.keys() & saved.keys():
        distributed.fill(tensors[name], saved[name])
    state = optimizer.state_dict()["state"]  # holds the optimizer's own dicts
    for name in (name for name in saved if name.startswith("optimizer.") and name not in tensors):
        _, place, key = name.split(".")
        state[int(place)][key] = saved[name]
    updates.count = saved["loss.count"]
    if updates.average is not None:
        updates.average.load_state_dict({**updates.average.state_dict(), "updates": saved["average.updates"]})
