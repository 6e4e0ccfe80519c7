"""Save a model as a Hanmo folder, as a TensorFlow checkpoint in the original's names, or as a Hugging Face folder.

Tensors are transposed and converted while they are written, so the weights are never in memory twice. Nothing appears
under its final name before all of it is written. A model that a form cannot express is refused.
"""

import glob
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanmo.checkpoint.candidates import check_family
from hanmo.checkpoint.load import FLOATS, as_dtype
from hanmo.checkpoint.names import MADE, PIECE, export_row, foreign_shape, rows_of
from hanmo.checkpoint.quantized import MARK, rounded_items
from hanmo.checkpoint.recognise import with_heads
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.source import Array, TensorInfo
from hanmo.checkpoint.staged import Item, Staged, atomic_folder, partial_folder
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, MissingFile
from hanmo.families import FAMILIES, Names, Row
from hanmo.model import Model

__all__ = ["FORMS", "Saved", "save"]

FORMS = ("safetensors", "tensorflow", "huggingface")


@dataclass(frozen=True)
class Saved:
    """The path to load the model from, and notes on what the form could not express."""

    path: Path
    notes: list[str] = field(default_factory=list)


def save(
    model: Model,
    path: str | Path,
    *,
    form: str = "safetensors",
    family: str | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_bytes: int | None = None,
    tokenizer: Sequence[str | Path] | Mapping[str, Path | dict[str, Any]] = (),
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Saved:
    """Save a model's parameters and configuration.

    form: "safetensors", a folder with Hanmo's own names, which holds every model; "tensorflow", where path is the
    prefix PATH.index, PATH.data-…, with config.json beside it, all in the original's names; or "huggingface", a
    folder that `transformers` loads.
    family: whose names to write, if not the model's own: "gpt2_openai" for a GPT-2 that was loaded as "gpt2".
    dtype: of floating parameters in the file; None keeps each as it is.   max_shard_bytes: None writes one data file.
    "int8" quantizes matrices, with a scale for each row; it is for "safetensors" in one file.
    tokenizer: files (vocab.txt, …) to copy along; or what `huggingface_files` gives: name → file, or JSON to write.
    overwrite: replace what is at the path.
    progress: called with the bytes of each piece that was written.
    Raises CheckpointError where the form does not exist for the family or cannot hold the model, ConfigError for an
    unknown form or family, or an object that is no network, and MissingFile for a tokenizer file that is not there.
    """
    if form not in FORMS:
        raise ConfigError(f"form is {form!r}; known are {', '.join(FORMS)}")
    path, state, kind = Path(path), _filled(model), as_dtype(dtype, (*FLOATS, "int8"))
    extra, added = _files(tokenizer)
    notes: list[str] = []
    if form == "safetensors":
        rows, made = [Row((name,), name) for name in state], {}
        texts = {"hanmo.json": model.config.to_json()}
    else:
        family = family or model.config.family
        names = _names(family, form)
        data = _foreign_config(model.config, names, form) | model.config.generation | added
        rows = rows_of(state, names.rows(model.config))
        notes = _compare(model.config, data, names, rows)
        made = {name: MADE[how](model.config) for name, how in names.made.items()} if form == "huggingface" else {}
        if form == "huggingface":
            data["dtype"] = _name(kind or state["token.weight"].dtype)
        texts = {"config.json": _json(data)}
    metadata = {"format": "pt"} if form == "huggingface" else {}
    items = _items(state, rows, made, kind, progress)
    if kind == torch.int8:
        if form != "safetensors" or max_shard_bytes is not None:
            raise ConfigError(f"dtype is int8, form is {form!r}; 8 bits are for form='safetensors', in one file")
        items, metadata = rounded_items(state), MARK
    if form == "tensorflow":
        with _beside(path, overwrite=overwrite) as folder:
            write_bundle(folder / path.name, items, max_shard_bytes=max_shard_bytes)
            _add(folder, texts, extra)
    else:
        with atomic_folder(path, overwrite=overwrite) as folder:
            write_safetensors(folder / "model.safetensors", items, metadata=metadata, max_shard_bytes=max_shard_bytes)
            _add(folder, texts, extra)
    return Saved(path, notes)


def _filled(model: Model) -> dict[str, Tensor]:
    if not isinstance(model, Model):
        raise ConfigError(f"model is a {type(model).__name__}; give loaded.model, or call loaded.save(path)")
    state: dict[str, Tensor] = dict(model.named_parameters())
    if empty := [name for name, parameter in state.items() if parameter.is_meta]:
        raise CheckpointError(f"{empty[0]} is not filled; load or initialize the model before saving it")
    return state


def _names(family: str, form: str) -> Names:
    check_family(family)
    known = FAMILIES[family]
    huggingface = known.huggingface or (FAMILIES[known.writes_as].huggingface if known.writes_as else None)
    forms = {"tensorflow": known.tensorflow, "huggingface": huggingface}
    forms = {form: None if names and names.read_only else names for form, names in forms.items()}
    names = forms[form]
    if names is None:
        there = ", ".join(["safetensors", *[name for name, value in forms.items() if value is not None]])
        raise CheckpointError(f"{family} has no form {form!r}; its forms are {there}")
    return names


def _foreign_config(config: ModelConfig, names: Names, form: str) -> dict[str, Any]:
    try:
        return names.original(config)
    except ConfigError as error:
        raise CheckpointError(f"the form {form!r} cannot hold this model: {error}; save as safetensors") from None


# Fields that change no output of a trained model.
_FREE = ("family", "initializer", "dropout", "attention_dropout")
# Below this an eps is lost in the variance of any norm's input that is not itself next to nothing.
_SMALL_EPS = 1e-6


def _compare(config: ModelConfig, data: Mapping[str, Any], names: Names, rows: Sequence[Row]) -> list[str]:
    """Read the foreign config.json back and compare; return notes on what it leaves out.

    Raises CheckpointError naming a field that the form cannot express.
    """
    written = {row.theirs: None for row in rows}
    try:
        again = with_heads(names.config(json.loads(json.dumps(data))), names, written)
    except ConfigError as error:
        raise CheckpointError(f"that form cannot hold this model: {error}; save as safetensors") from None
    before, after = _fields(config), _fields(again)
    notes = []
    for key in sorted(before | after):
        one, two = before.get(key), after.get(key)
        leaf = key.rpartition(".")[2]
        if one == two or leaf in _FREE:
            continue
        if leaf == "mask":
            notes.append(f"{key} is {one!r}, which that form does not say; load it again with mask={one!r}")
        elif (
            leaf.endswith("_eps") and isinstance(one, float) and isinstance(two, float) and max(one, two) <= _SMALL_EPS
        ):
            notes.append(f"{key} is {one:g} and becomes {two:g}, for that form has one eps for all norms")
        else:
            raise CheckpointError(
                f"{key} is {one!r}, but that form would make it {two!r}; save as safetensors, which keeps everything"
            )
    return notes


def _fields(config: ModelConfig) -> dict[str, Any]:
    """Flatten a configuration, "encoder.hidden_size" → 768, without the fields that no part of it uses."""
    flat: dict[str, Any] = {}
    for name, value in asdict(replace(config, generation={})).items():
        if name in ("encoder", "decoder") and value is not None:
            flat |= {f"{name}.{key}": leaf for key, leaf in value.items() if not _idle(value, key)}
        else:
            flat[name] = value
    idle = []
    if config.output == "none":
        idle += ["tied", "logit_scale"]
    if config.output != "mlm":
        idle += ["head_norm_eps", *([] if config.discriminator else ["head_activation"])]
    return {key: value for key, value in flat.items() if value is not None and key not in idle}


def _idle(stack: Mapping[str, Any], key: str) -> bool:
    return (
        (key == "positions" and stack["position"] != "learned")
        or (key == "embedding_norm_eps" and not stack["embedding_norm"])
        or (key in ("buckets", "bucket_distance") and stack["position"] != "buckets")
        or (key == "relative_clip" and stack["position"] != "relative")
    )


def _items(
    state: Mapping[str, Tensor],
    rows: Sequence[Row],
    made: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Item]:
    for row in rows:
        parts = [state[name].detach() for name in row.ours]
        kinds = {dtype if dtype is not None and part.is_floating_point() else part.dtype for part in parts}
        if len(kinds) > 1:
            raise CheckpointError(
                f"{row.theirs} joins {', '.join(row.ours)}, which are of {' and '.join(sorted(map(_name, kinds)))}; "
                f"pass the dtype to save them in"
            )
        shape = foreign_shape(row, [part.shape for part in parts])
        yield _item(row.theirs, shape, kinds.pop(), partial(export_row, row, parts), progress)
    for name, tensor in made.items():
        yield _item(name, tuple(tensor.shape), dtype or state["token.weight"].dtype, tensor.clone, progress)


def _item(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    make: Callable[[], Tensor],
    progress: Callable[[int], None] | None,
) -> Item:
    info = TensorInfo(name, _name(dtype), shape, prod(shape) * dtype.itemsize)
    return name, (info, _pieces(make, dtype, progress))


def _pieces(make: Callable[[], Tensor], dtype: torch.dtype, progress: Callable[[int], None] | None) -> Iterator[Array]:
    """Yield a tensor's bytes in C order, in pieces so that a transposed or converted copy stays small."""
    tensor = make()
    while tensor.ndim > 1 and len(tensor) == 1:
        tensor = tensor[0]
    step = max(1, PIECE * len(tensor) // (tensor.numel() * dtype.itemsize))
    for at in range(0, len(tensor), step):
        piece = tensor[at : at + step].to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        yield piece
        if progress is not None:
            progress(piece.nbytes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _files(
    tokenizer: Sequence[str | Path] | Mapping[str, Path | dict[str, Any]],
) -> tuple[dict[str, Path | dict[str, Any]], dict[str, Any]]:
    """Return the files to put beside the weights, by name, and what to add to config.json."""
    named = tokenizer if isinstance(tokenizer, Mapping) else {Path(file).name: Path(file) for file in tokenizer}
    extra = dict(named)
    for file in extra.values():
        if isinstance(file, Path) and not file.is_file():
            raise MissingFile(f"no tokenizer file at {file}; give files that are there, such as vocab.txt")
    added = extra.get("config.json")
    if not isinstance(added, dict):
        return extra, {}
    del extra["config.json"]
    return extra, added


def _add(folder: Path, texts: Mapping[str, str], extra: Mapping[str, Path | dict[str, Any]]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    for name, file in extra.items():
        if (folder / name).exists():
            raise CheckpointError(f"{file} cannot be copied along: the checkpoint itself has a file {name}")
        if isinstance(file, dict):
            (folder / name).write_text(_json(file), "utf-8")
        else:
            shutil.copyfile(file, folder / name)


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def _beside(prefix: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to fill with a prefix's files, which are renamed into the prefix's folder at the end.

    A folder that does not exist appears complete. In one that does, the `.index` comes last: without it the rest is no
    checkpoint. Raises CheckpointError if a file is there already.
    """
    if not prefix.parent.exists():
        with atomic_folder(prefix.parent) as made:
            yield made
        return
    index, config = prefix.with_name(f"{prefix.name}.index"), prefix.with_name("config.json")
    old = set(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))
    _refuse([index, config, *old], overwrite=overwrite)
    with partial_folder(prefix) as made:
        yield made
        files = sorted(made.iterdir(), key=lambda file: file.name == index.name)
        finals = [prefix.with_name(file.name) for file in files]
        _refuse(finals, overwrite=overwrite)
        with Staged() as staged:
            for file, final in zip(files, finals, strict=True):
                staged.place(file, final)
        for file in old - set(finals):
            file.unlink()


def _refuse(files: Sequence[Path], *, overwrite: bool) -> None:
    if not overwrite and (there := [file for file in files if file.exists()]):
        raise CheckpointError(f"{there[0]} exists; give a prefix in another folder, or replace it with overwrite=True")
