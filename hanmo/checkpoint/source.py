"""What every reader of weights offers, and which reader a path needs.

Knows the protocol `Source`, the dtypes by name, and how files are recognised. Knows nothing of models, names
of variables or torch: tensors are NumPy arrays, and dtypes that NumPy lacks come as their raw bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hanmo.errors import CheckpointError, MissingFile
from hanmo.files import read_bytes

__all__ = ["ADAPTERS", "ENDINGS", "STORAGE", "Array", "Source", "TensorInfo", "locate", "open_source", "storage_bytes"]

ADAPTERS = "adapters.safetensors"
"""Name of a file of LoRA adapters, which is no checkpoint by itself; see `hanmo.training.lora`."""

Array = npt.NDArray[Any]

STORAGE: Mapping[str, str] = {
    **{name: name for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("float16", "float32", "float64", "complex64", "complex128")},
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
}
"""Our dtype name -> the NumPy dtype that `Source.read` returns for it (raw bits where the two differ)."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Describe one stored tensor: its name, dtype, shape and the bytes it takes in the file.

    dtype: a key of STORAGE, "string", or the name of a dtype that can be listed but not read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@runtime_checkable
class Source(Protocol):
    """A checkpoint that is open for reading; see `open_source`. Use it as a context manager."""

    path: Path

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name, in the order of the names."""

    @property
    def in_file_order(self) -> Sequence[str]:
        """Names in the order of their bytes: reading them so is one sequential pass over the files."""

    def read(self, name: str) -> Array:
        """Return one tensor, writable: a copy-on-write view of the file where its layout allows, else a copy.

        The dtype is `STORAGE[info.dtype]`. Writing into the array never changes the file. The view stays
        valid after `close`. Raises KeyError for an unknown name, CorruptFile for damaged bytes and
        MissingFile for a shard that is not there.
        """

    def release(self, name: str) -> None:
        """Tell the kernel that this tensor's mapped pages are not needed now.

        Views stay valid and are read from the file again when touched; what was written into them is lost.
        """

    def close(self) -> None:
        """Let go of the files; arrays that were read stay valid."""

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def storage_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor; dtype must be a key of STORAGE."""
    return prod(shape) * np.dtype(STORAGE[dtype]).itemsize


def open_source(path: str | Path, *, verify: bool = True) -> Source:
    """Open the checkpoint at `path` with the reader that it needs, under names that a family has (`Renamed`).

    path: a TensorFlow prefix, its `.index` or one of its `.data-*` files; a `.safetensors`, `.bin`, `.pt`, `.pth` or
    (Lightning's) `.ckpt` file; the `*.index.json` of a sharded one; or a folder that holds exactly one of these, or
    TensorFlow's file "checkpoint", which names the newest.
    verify: check the checksums, where the format has them, of every tensor that is read.
    Raises MissingFile if nothing lies there and CheckpointError if it is none of these.
    """
    from hanmo.checkpoint.renamed import with_known_names

    source = _open(locate(Path(path)), verify=verify)
    try:
        return with_known_names(source)
    except CheckpointError:
        source.close()
        raise


def _open(found: Path, *, verify: bool) -> Source:
    if found.name == ADAPTERS:
        raise CheckpointError(
            f"{found} holds LoRA adapters, not a whole model; use the folder `merged` of its run, or save what "
            "hanmo.load gives for it"
        )
    if found.name.endswith((".safetensors", ".safetensors.index.json")):
        from hanmo.checkpoint.quantized import MARK, Quantized
        from hanmo.checkpoint.safetensors import Safetensors

        source = _whole(found, Safetensors)
        return Quantized(source) if isinstance(source, Safetensors) and source.metadata == MARK else source
    bundle = found.with_name(f"{found.name}.index").is_file()
    if found.name.endswith((".bin", ".pt", ".pth", ".bin.index.json")) or (found.suffix == ".ckpt" and not bundle):
        from hanmo.checkpoint.torch_files import TorchFile

        return _whole(found, lambda file: TorchFile(file, verify=verify))
    from hanmo.checkpoint.tf.bundle import Bundle

    return Bundle(found, verify=verify)


def _whole(path: Path, open_file: Callable[[Path], Source]) -> Source:
    from hanmo.checkpoint.shards import Sharded

    return Sharded(path, open_file) if path.name.endswith(".json") else open_file(path)


ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".index")
"""How the names of files end that are opened; ".ckpt" is Lightning's."""
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def locate(path: Path) -> Path:
    """Return the file to open (for TensorFlow, its prefix); a training run's folder means its best checkpoint.

    Raises MissingFile if nothing lies there and CheckpointError if it is no checkpoint, or several.
    """
    if path.is_dir():
        return locate(_only_checkpoint(path))
    if path.name.endswith(".index"):
        return path.with_name(path.name.removesuffix(".index"))
    if path.with_name(path.name + ".index").is_file():
        return path
    stem, dot_data, _ = path.name.rpartition(".data-")
    if dot_data and path.with_name(stem + ".index").is_file():
        return path.with_name(stem)
    if _is_public_name(path):
        raise MissingFile(
            f"no checkpoint at {path}: there is no such file or folder, and Hanmo downloads nothing; a model of the "
            f"Hugging Face Hub comes by 'hf download {path} --local-dir FOLDER', original checkpoints from where their "
            f"project's README says (imcaspar/gpt2-ml, google-research/bert, ymcui/Chinese-BERT-wwm …); load the folder"
        )
    if not path.is_file():
        raise MissingFile(
            f"no checkpoint at {path}: there is no such file, and no {path.name}.index beside it; "
            "give a TensorFlow prefix, a .safetensors or .bin file, or a folder with one of them"
        )
    if path.name.endswith(ENDINGS):
        return path
    raise CheckpointError(
        f"{path} is not a checkpoint that Hanmo can read; expected a name that ends in "
        f"{', '.join(ENDINGS)}, or a TensorFlow prefix with its .index beside it"
    )


def _is_public_name(path: Path) -> bool:
    """Tell whether a path looks like "bert-base-chinese" or "imcaspar/gpt2-ml", and nothing lies there."""
    plain = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path.as_posix())
    file = any(part in path.name for part in (".ckpt", ".data-", *ENDINGS))
    folder = len(path.parts) > 1 and path.parent.exists()
    return bool(plain) and not (file or folder or path.exists())


def _only_checkpoint(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    for best in (folder / "best", *sorted(folder.glob("best-*"), reverse=True)):  # the first links to the last
        if best.is_dir():
            return best
    found = sorted(p for p in folder.iterdir() if p.name.endswith(ENDINGS))
    newest = _newest(folder)
    if len(found) == 1 or newest in found:
        return newest if newest in found else found[0]
    if not found:
        raise MissingFile(f"no checkpoint in {folder}: it holds no file ending in {', '.join(ENDINGS)}")
    names = ", ".join(p.name for p in found[:10])
    raise CheckpointError(f"{folder} holds {len(found)} checkpoints ({names}); give the path of one of them")


def _newest(folder: Path) -> Path | None:
    """Read which `.index` TensorFlow's file "checkpoint" says is the newest; its folder may have been another."""
    file = folder / "checkpoint"
    if not file.is_file():
        return None
    text = read_bytes(file, error=CheckpointError, limit=1 << 20).decode("utf-8", "replace")
    told = re.search(r'^model_checkpoint_path: *"([^"\n]+)"', text, re.MULTILINE)
    return folder / (re.split(r"[/\\]", told[1])[-1] + ".index") if told else None
