"""Checkpoints of a training run: folders that are whole or not there.

    OUT/last-00001200/    a Hanmo folder: hanmo.json, model.safetensors, vocab.txt; and state.pt, for resuming
    OUT/best-00001000/    the same without state.pt

A folder is written beside and renamed; only then are older ones deleted. Knows files; knows no loop.
"""

import pickle
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from hanmo.errors import CorruptFile, MissingFile, TensorMismatch
from hanmo.model import Model
from hanmo.weights.write import atomic_folder

__all__ = ["fill_from", "newest", "read_state", "save_checkpoint", "write_model"]


def save_checkpoint(
    out: Path,
    kind: str,
    step: int,
    model: Model,
    *,
    state: dict[str, Any] | None = None,
    beside: Iterable[Path] = (),
    keep: int = 1,
) -> Path:
    """Write OUT/KIND-STEP and delete the older ones of this kind but `keep`.

    state: tensors, numbers, strings, lists and dicts.   beside: files to copy in, such as vocab.txt.
    """
    folder = out / f"{kind}-{step:08d}"
    with atomic_folder(folder, overwrite=True) as made:
        write_model(made, model, beside=beside)
        if state is not None:
            torch.save(state, made / "state.pt")
    for old in _folders(out, kind)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def write_model(folder: Path, model: Model, *, beside: Iterable[Path] = ()) -> None:
    """Write hanmo.json and model.safetensors into a folder that is there; the weights as they are."""
    (folder / "hanmo.json").write_text(model.config.to_json(), encoding="utf-8")
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in beside:
        shutil.copyfile(path, folder / path.name)


def newest(out: Path, kind: str) -> Path | None:
    """Find the checkpoint of the highest step, or None."""
    found = _folders(out, kind)
    return found[-1] if found else None


def read_state(folder: Path) -> dict[str, Any]:
    """Read state.pt, running no code from it.

    Raises MissingFile, and CorruptFile if it is damaged or holds more than tensors and numbers.
    """
    path = folder / "state.pt"
    try:
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing, so training cannot go on from it; name a last-* checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CorruptFile(f"{path} cannot be read ({str(error)[:200]}); resume from another checkpoint") from None


@torch.no_grad()
def fill_from(model: Model, folder: Path) -> None:
    """Copy a checkpoint's weights into a model, on whatever device it is.

    Raises TensorMismatch if names or shapes are not the model's.
    """
    tensors = load_file(folder / "model.safetensors")
    ours = dict(model.named_parameters())
    wrong = sorted(set(tensors) ^ set(ours)) or [name for name in ours if ours[name].shape != tensors[name].shape]
    if wrong:
        raise TensorMismatch(f"{folder} does not fit the model: {wrong[0]} differs; resume with the same configuration")
    for name, parameter in ours.items():
        parameter.copy_(tensors[name])


def _folders(out: Path, kind: str) -> list[Path]:
    named = re.compile(rf"{re.escape(kind)}-\d{{8}}")
    return (
        sorted(path for path in out.iterdir() if path.is_dir() and named.fullmatch(path.name)) if out.is_dir() else []
    )
