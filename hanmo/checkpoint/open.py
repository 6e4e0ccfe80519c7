"""What is at a path: which checkpoint, in which format and files, and the configuration beside it.

The one place that answers this; loading, `inspect`, the engine's store and the planner ask here. Knows names of files
and opens the reader for them. Knows no names of variables and imports no torch unless a file needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from hanmo.checkpoint.quantized import MARK, Quantized
from hanmo.checkpoint.renamed import with_known_names
from hanmo.checkpoint.safetensors import Safetensors, is_safetensors
from hanmo.checkpoint.source import Array, Source
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, CorruptFile, MissingFile
from hanmo.files import read_bytes, read_json

_MAX_INDEX = 64 << 20

ADAPTERS = "adapters.safetensors"
"""Name of a file of LoRA adapters, which is no checkpoint by itself; see `hanmo.training.lora`."""

INCLUDED = {name: Path(__file__).parents[1] / "assets" / name for name in ("small", "encoder")}
"""Folders of the models of the package by their names."""

OWN_CONFIG = "hanmo.json"
GENERATION_CONFIG = "generation_config.json"
_CONFIGS = ("config.json", "bert_config.json", "albert_config.json", "hparams.json", "mega.json")

_ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".index")
"""How the names of files end that are opened; ".ckpt" is Lightning's."""
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# What training scripts leave in a folder, and the parts that an index json lists.
_NO_MODEL = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)|.*-\d{5}-of-\d{5}\.\w+")


@dataclass(frozen=True)
class Location:
    """A checkpoint that was found; none of its files has been opened.

    path: the file to open; for TensorFlow the prefix.
    format: "tensorflow", "safetensors", "torch" or "adapters" (LoRA, which need the model they were trained on).
    """

    path: Path
    format: str

    @property
    def folder(self) -> Path:
        """Where configuration and tokenizer are."""
        return self.path.parent

    @property
    def sharded(self) -> bool:
        """Whether `path` is an index json that lists the files of tensors."""
        return self.path.name.endswith(".json")

    @property
    def data_files(self) -> list[Path]:
        """The files of tensors, there or not; of TensorFlow those that are there. Raises CorruptFile."""
        if self.format == "tensorflow":
            return sorted(self.folder.glob(f"{escape(self.path.name)}.data-*"))
        if self.sharded:
            return [self.path.with_name(name) for name in sorted(set(_read_weight_map(self.path).values()))]
        return [self.path]

    @property
    def files(self) -> list[Path]:
        """Every file that the weights are in, an index included, sorted."""
        index = [self.path.with_name(f"{self.path.name}.index")] if self.format == "tensorflow" else [self.path]
        return sorted({*self.data_files, *index})

    @property
    def own_config(self) -> Path | None:
        """The hanmo.json beside it; None if there is none."""
        path = self.folder / OWN_CONFIG
        return path if path.is_file() else None

    @property
    def config(self) -> Path | None:
        """The config.json beside it; see `find_config`."""
        return find_config(self.folder)


class Sharded(Source):
    """All files of an index json as one.

    Raises MissingFile naming the file that is not there, and CorruptFile where index and files disagree.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], Source]) -> None:
        self.path = path
        weight_map = _read_weight_map(path)
        files = sorted(set(weight_map.values()))
        for file in files:
            if not (path.parent / file).is_file():
                raise MissingFile(
                    f"{path.parent / file} is missing; {path.name} lists {len(files)} files: download it again"
                )
        self._parts = [open_file(path.parent / file) for file in files]
        self._owner: dict[str, Source] = {}
        for file, part in zip(files, self._parts, strict=True):
            for name in part.tensors:
                if weight_map.get(name) != file:
                    raise CorruptFile(
                        f"{path.parent / file} holds {name!r}, for which {path.name} names {weight_map.get(name)}"
                    )
                self._owner[name] = part
        for name, file in weight_map.items():
            if name not in self._owner:
                raise CorruptFile(f"{path} says that {name!r} is in {file}, which does not hold it")
        self.tensors = {name: self._owner[name].tensors[name] for name in sorted(self._owner)}
        self.in_file_order = [name for part in self._parts for name in part.in_file_order]

    def read(self, name: str) -> Array:
        return self._owner[name].read(name)

    def release(self, name: str) -> None:
        self._owner[name].release(name)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _read_weight_map(path: Path) -> dict[str, str]:
    """Read which file beside the index json holds each tensor. Raises MissingFile, CorruptFile."""
    weight_map = read_json(path, unique=True, limit=_MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CorruptFile(f'{path} has no object "weight_map" that names the file of each tensor')
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or file in {"", ".."}
            or file != Path(file).name
            or set(file) & {"\\", "\0"}
            or len(file.encode()) > 255
        ):
            raise CorruptFile(f"{path} names {file!r} for {name!r}; expected a file name in the same folder")
    return weight_map


def open_source(path: str | Path | Location, *, verify: bool = True) -> Source:
    """Open the checkpoint at `path`; names of another project are given as a family's own (`Renamed`).

    path: a TensorFlow prefix, its `.index` or one of its `.data-*` files; a `.safetensors`, `.bin`, `.pt`, `.pth` or
    (Lightning's) `.ckpt` file; the `*.index.json` of a sharded one; or a folder that holds exactly one of these, or
    TensorFlow's file "checkpoint", which names the newest.
    verify: check the checksums, where the format has them, of every tensor that is read.
    Raises MissingFile if there is nothing and CheckpointError if it is none of these.
    """
    found = locate(path)
    if found.format == "adapters":
        raise CheckpointError(
            f"{found.path} holds LoRA adapters, not a complete model; use the folder `merged` of its run, or save what "
            "hanmo.load gives for it"
        )
    source: Source
    if found.format == "safetensors":
        source = Sharded(found.path, Safetensors) if found.sharded else Safetensors(found.path)
        if isinstance(source, Safetensors) and source.metadata == MARK:
            source = Quantized(source)
    elif found.format == "torch":
        from hanmo.checkpoint.torch_files import TorchFile

        reader = partial(TorchFile, verify=verify)
        source = Sharded(found.path, reader) if found.sharded else reader(found.path)
    else:
        from hanmo.checkpoint.tf.bundle import Bundle

        source = Bundle(found.path, verify=verify)
    try:
        return with_known_names(source)
    except CheckpointError:
        source.close()
        raise


def locate(path: str | Path | Location) -> Location:
    """Find the checkpoint at a path, which may be any of those of `open_source`, without opening it.

    "small" and "encoder" are the models of the package where nothing of that name is in the working folder.
    A training run's folder means its best checkpoint; LoRA adapters are found too.
    Raises MissingFile if there is nothing and CheckpointError if it is no checkpoint, or several.
    """
    if isinstance(path, Location):
        return path
    path = included(path)
    while path.is_dir():
        path = _only_checkpoint(path)
    if path.name.endswith(".index"):
        return Location(path.with_name(path.name.removesuffix(".index")), "tensorflow")
    for name in (path.name, path.name.rpartition(".data-")[0]):
        if path.with_name(f"{name}.index").is_file():
            return Location(path.with_name(name), "tensorflow")
    if not path.is_file():
        raise MissingFile(f"no checkpoint at {path}: there is no such file{_advice(path)}")
    if not path.name.endswith(".json") and is_safetensors(path):
        return Location(path, "adapters" if path.name == ADAPTERS else "safetensors")
    if not path.name.endswith(_ENDINGS):
        raise CheckpointError(
            f"{path} is not a checkpoint that Hanmo can read; expected a name that ends in "
            f"{', '.join(_ENDINGS)}, or a TensorFlow prefix with its .index beside it"
        )
    if path.name == ADAPTERS:
        return Location(path, "adapters")
    return Location(path, "safetensors" if ".safetensors" in path.name else "torch")


def included(path: str | Path) -> Path:
    """Return the folder of a model of the package for its name, unless there is something at that path; or the path."""
    path = Path(path)
    return path if path.exists() else INCLUDED.get(str(path), path)


def read_own_config(source: Source) -> ModelConfig | None:
    """Read the configuration in Hanmo's own form: in a file's header, or in the hanmo.json beside it; None without."""
    header = getattr(source, "metadata", {}).get("hanmo")
    if header is not None:
        return ModelConfig.from_json(header)
    path = source.path.parent / OWN_CONFIG
    return ModelConfig.read(path) if path.is_file() else None


def find_config(folder: Path) -> Path | None:
    """Find the config.json of a folder, under any of the names it goes by; None if there is none, or several."""
    for name in _CONFIGS:
        if (folder / name).is_file():
            return folder / name
    others = sorted(folder.glob("*config*.json"))
    return others[0] if len(others) == 1 else None


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read what `find_config` finds. Raises ConfigError for what is no JSON object."""
    path = find_config(folder)
    return None if path is None else read_json(path, error=ConfigError)


def find_checkpoints(path: str | Path) -> list[Path]:
    """List the checkpoints at a path: those of a folder, else the path itself, there or not."""
    path = Path(path)
    names = sorted(file.name for file in path.iterdir() if file.name.endswith(_ENDINGS)) if path.is_dir() else []
    models = [name for name in names if not _NO_MODEL.fullmatch(name)] or names
    return [path / name for name in sorted(models, key=lambda name: (name not in _IN_FOLDER[:2], name))] or [path]


def _only_checkpoint(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    for best in (folder / "best", *sorted(folder.glob("best-*"), reverse=True)):  # the first links to the last
        if best.is_dir():
            return best
    found = find_checkpoints(folder)
    if found == [folder]:
        raise MissingFile(f"no checkpoint in {folder}: it holds no file ending in {', '.join(_ENDINGS)}")
    if (file := folder / "checkpoint").is_file():  # TensorFlow's: it names the newest, perhaps in another folder
        text = read_bytes(file, error=CheckpointError, limit=1 << 20).decode("utf-8", "replace")
        match = re.search(r'^model_checkpoint_path: *"([^"\n]+)"', text, re.MULTILINE)
        newest = folder / (re.split(r"[/\\]", match[1])[-1] + ".index") if match else None
        if newest in found:
            return newest
    if len(found) == 1:
        return found[0]
    names = ", ".join(p.name for p in found[:10])
    raise CheckpointError(f"{folder} holds {len(found)} checkpoints ({names}); give the path of one of them")


def _advice(path: Path) -> str:
    """Return advice for a missing path, which may be a public name like "imcaspar/gpt2-ml"."""
    plain = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path.as_posix())
    file = any(part in path.name for part in (".ckpt", ".data-", *_ENDINGS))
    if plain and not file and not (len(path.parts) > 1 and path.parent.exists()):
        return (
            f" or folder, and Hanmo downloads nothing; a model of the Hugging Face Hub comes by 'hf download {path} "
            f"--local-dir FOLDER', original checkpoints from where their project's README says (imcaspar/gpt2-ml, "
            f"google-research/bert, ymcui/Chinese-BERT-wwm …); load the folder"
        )
    return (
        f", and no {path.name}.index beside it; give a TensorFlow prefix, a .safetensors or .bin file, or a folder "
        "with one of them"
    )
