"""Checkpoints of a training run: complete folders, written under a temporary name and renamed.

    OUT/last-00001200/    a Hanmo folder: hanmo.json, model.safetensors, vocab.txt; and state.pt, for resuming
    OUT/best-00001000/    the same without state.pt
    OUT/best              a symbolic link to it, where the system has these

Older ones are deleted after the rename. Of a model with adapters only these are kept, in adapters.safetensors, with
adapter_config.json, which names the base model. Of a module that is not a Hanmo model, "last" holds its parameters in
model.safetensors, and "best" what the caller's `save` writes.
If several processes train, all of them write the tensors of "last" (see sharded_checkpoints.py). Knows no loop.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hanmo.checkpoint.load import as_tensor
from hanmo.checkpoint.open import ADAPTERS
from hanmo.checkpoint.safetensors import Safetensors
from hanmo.checkpoint.save import save
from hanmo.checkpoint.staged import atomic_folder, exclusive, is_disk_full
from hanmo.errors import CheckpointError, CorruptFile, HanmoError, MissingFile, TensorMismatch
from hanmo.files import errors_as, open_file
from hanmo.model import Model
from hanmo.training import distributed, sharded_checkpoints
from hanmo.training.lora import has_lora, save_lora
from hanmo.training.step import Updates

__all__ = [
    "Checkpoints",
    "Place",
    "fill_from",
    "guarded",
    "locked",
    "newest",
    "read_state",
    "recover",
    "save_checkpoint",
]

_OTHER = "; resume from another checkpoint"


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
    worse: int = 0  # evaluations since the best one
    measured: int = -1  # step of the last evaluation
    samples: int | None = None  # bytes of samples.txt


class Checkpoints:
    """The last and the best checkpoint of one run, under `out`; save: as for `fit`."""

    def __init__(
        self, out: Path, updates: Updates, beside: list[Path], save: Callable[[Any, Path], object] | None = None
    ) -> None:
        self._out, self._updates, self._model, self._beside = out, updates, updates.model, beside
        self._save = save

    def save_best(self, step: int) -> None:
        """Save the weights as the best."""
        model = sharded_checkpoints.gathered(self._model)
        if distributed.is_main():
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
        state = {"place": place, "settings": asdict(updates.args), "generators": generators}
        if distributed.world() > 1:
            sharded_checkpoints.write(self._out / f"last-{step:08d}", updates, state, beside=self._beside)
            if distributed.is_main():
                _forget(self._out, "last", keep=1)
            return
        state |= {"optimizer": updates.optimizer.state_dict(), **updates.state()}
        save_checkpoint(self._out, "last", step, self._model, state=state, beside=self._beside)

    def restore(self, folder: Path) -> dict[str, Any]:
        """Restore what `save_last` saved; return the place.

        Raises CheckpointError if the run's arguments differ.
        """
        state, updates = read_state(folder), self._updates
        with errors_as(CorruptFile, f"{folder} does not hold what training resumes from", advice=_OTHER):
            if other := updates.args.differences(state["settings"]):
                was, now = state["settings"].get(other[0]), getattr(updates.args, other[0])
                raise CheckpointError(
                    f"{folder} was trained with {other[0]}={was}, now it is {now}; resume with the same"
                )
            if (folder / sharded_checkpoints.SHARDS).is_dir():
                sharded_checkpoints.read(folder, updates, state)
            else:
                fill_from(self._model, folder)
                sharded_checkpoints.restore(updates, state)
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
    keep: int = 1,
    write: Callable[[Any, Path], object] | None = None,
) -> Path:
    """Write OUT/KIND-STEP and delete the older ones of this kind but `keep`.

    state: tensors, numbers, strings, lists and dicts.   beside: files to copy in, such as vocab.txt.
    write: (model, folder) → writes the weights, instead of the format for the model's class.
    """
    folder = out / f"{kind}-{step:08d}"
    with atomic_folder(folder, overwrite=True) as made:
        if isinstance(model, Model) and write is None and not has_lora(model):
            save(model, made, tokenizer=list(beside))
        else:
            if write is not None:
                write(model, made)
            elif has_lora(model):
                save_lora(model, made / ADAPTERS)
            else:
                tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
                save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
            for file in beside:
                shutil.copyfile(file, made / file.name)
        if state is not None:
            torch.save(state, made / "state.pt")
    if kind == "best":
        with suppress(OSError):  # a system without symbolic links
            link = out / ".best.link"
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name, target_is_directory=True)
            os.replace(link, out / "best")
    _forget(out, kind, keep=keep)
    return folder


def newest(out: Path, kind: str) -> Path | None:
    """Return the checkpoint of the highest step, or None."""
    found = _folders(out, kind)
    return found[-1] if found else None


def recover(out: Path) -> None:
    """Clean up after a process that was killed while saving: restore old folders, delete unfinished ones."""
    if not distributed.is_main():
        return
    for path in sorted(out.glob(".*-*.*")):
        # Weights inside such a folder are staged too, hence names with two suffixes.
        if found := re.fullmatch(r"\.?\.((?:last|best)-\d{8})((?:\.[0-9a-f]{12}\.(?:old|partial))+)", path.name):
            place = out / found[1]
            if re.fullmatch(r"\.[0-9a-f]{12}\.old", found[2]) and not place.exists():
                path.rename(place)
            else:
                shutil.rmtree(path)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder. Raises DataError, naming the process that holds it."""
    if not distributed.is_main():
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / ".lock", out, nested=True):
        yield


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
    try:
        with open_file(path) as file, errors_as(CorruptFile, f"{path} cannot be read", advice=_OTHER):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing, so training cannot go on from it; name a last-* checkpoint") from None
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


def _folders(out: Path, kind: str) -> list[Path]:
    named = re.compile(rf"{re.escape(kind)}-\d{{8}}")
    return (
        sorted(path for path in out.iterdir() if path.is_dir() and named.fullmatch(path.name)) if out.is_dir() else []
    )


def _forget(out: Path, kind: str, *, keep: int) -> None:
    for old in _folders(out, kind)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
