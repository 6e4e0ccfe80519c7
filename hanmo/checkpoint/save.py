"""Save a model as a Hanmo folder, as a TensorFlow checkpoint in the original's names, or as a Hugging Face folder.

Tensors are transposed and converted while they are written, so the weights are never in memory twice. Nothing appears
under its final name before all of it is written. A model that a form cannot express is refused.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from glob import escape
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.checkpoint.load import FLOATS, as_dtype
from hanmo.checkpoint.names import MADE, PIECE, export_row, foreign_shape, rows_of
from hanmo.checkpoint.quantized import MARK, rounded_items
from hanmo.checkpoint.recognise import check_family, with_heads
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.shapes import TASK_HEAD
from hanmo.checkpoint.source import Array, Item, TensorInfo
from hanmo.checkpoint.staged import Staged, atomic_folder, partial_folder
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, MissingFile
from hanmo.families import FAMILIES, Names, Row
from hanmo.model import Model

FORMS = ("safetensors", "tensorflow", "huggingface")

CODE = Path(__file__).parents[1] / "assets" / "transformers"
"""The networks that transformers does not have, as code for it."""


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
    head: nn.Module | None = None,
    head_names: Mapping[str, str] | None = None,
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
    head: of a task, "head.…".   head_names: in "huggingface", of its tensors, and of a pooler that is part of it there.
    overwrite: replace what is at the path.   progress: called with the bytes of each piece that was written.
    Raises CheckpointError where the form does not exist for the family or cannot hold the model, ConfigError for an
    unknown form or family, or an object that is no network, and MissingFile for a tokenizer file that is not there.
    """
    if form not in FORMS:
        raise ConfigError(f"form is {form!r}; known are {', '.join(FORMS)}")
    if not isinstance(model, Model):
        raise ConfigError(f"model is a {type(model).__name__}; give loaded.model, or call loaded.save(path)")
    path, kind = Path(path), as_dtype(dtype, (*FLOATS, "int8"))
    if kind == torch.int8 and (form != "safetensors" or max_shard_bytes is not None):
        raise ConfigError(f"dtype is int8, form is {form!r}; 8 bits are for form='safetensors', in one file")
    state: dict[str, Tensor] = dict(model.named_parameters()) | _of_head(head, form, head_names or {})
    if empty := [name for name, parameter in state.items() if parameter.is_meta]:
        raise CheckpointError(f"{empty[0]} is not filled; load or initialize the model before saving it")
    files, added = _files(tokenizer)
    if form == "safetensors":
        own, data, notes = "hanmo.json", asdict(model.config), list[str]()
        rows = [Row((name,), name) for name in state]
    else:
        own, names = "config.json", _names(family or model.config.family, form)
        data, rows, notes = _translate(model.config, state, names, form, added, head_names or {})
    if form == "huggingface":
        data["dtype"] = _name(stored := kind or state["token.weight"].dtype)
        state |= {name: MADE[how](model.config).to(stored) for name, how in names.made.items()}
        files |= {name: CODE / file for name, file in names.code.items()}
        rows += [Row((name,), name) for name in names.made]
    items = rounded_items(state) if kind == torch.int8 else items_of(state, rows, kind, progress)
    metadata = MARK if kind == torch.int8 else {"format": "pt"} if form == "huggingface" else {}
    with (_prefix_folder if form == "tensorflow" else atomic_folder)(path, overwrite=overwrite) as folder:
        if form == "tensorflow":
            write_bundle(folder / path.name, items, max_shard_bytes=max_shard_bytes)
        else:
            write_safetensors(folder / "model.safetensors", items, metadata=metadata, max_shard_bytes=max_shard_bytes)
        add_files(folder, {own: data})
        add_files(folder, files)
    return Saved(path, notes)


def _of_head(head: nn.Module | None, form: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    if head is None:
        return {}
    if form != "safetensors" and not (form == "huggingface" and names):
        raise ConfigError(f"form is {form!r}, which has no place for the head of a task; use form='safetensors'")
    found = {f"{TASK_HEAD}{name}": tensor for name, tensor in head.state_dict().items()}
    return {name: tensor for name, tensor in found.items() if not names or name in names}


def _files(
    tokenizer: Sequence[str | Path] | Mapping[str, Path | dict[str, Any]],
) -> tuple[dict[str, Path | dict[str, Any]], dict[str, Any]]:
    """Return the files to put beside the weights, by name, and what to add to config.json."""
    files = tokenizer if isinstance(tokenizer, Mapping) else {Path(file).name: Path(file) for file in tokenizer}
    for file in files.values():
        if isinstance(file, Path) and not file.is_file():
            raise MissingFile(f"no tokenizer file at {file}; give files that are there, such as vocab.txt")
    added = files.get("config.json")
    if not isinstance(added, dict):
        return dict(files), {}
    return {name: file for name, file in files.items() if name != "config.json"}, added


def add_files(folder: Path, files: Mapping[str, Path | dict[str, Any]]) -> None:
    """Copy files into a folder under their names, or write JSON there. Raises CheckpointError for a name it has."""
    for name, content in files.items():
        if (folder / name).exists():
            raise CheckpointError(f"{content} cannot be copied along: the checkpoint itself has a file {name}")
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _names(family: str, form: str) -> Names:
    check_family(family)
    known = FAMILIES[family]
    tables = {"tensorflow": known.tensorflow, "huggingface": FAMILIES[known.writes_as or family].huggingface}
    there = {name: names for name, names in tables.items() if names is not None and not names.read_only}
    if form not in there:
        raise CheckpointError(f"{family} has no form {form!r}; its forms are {', '.join(['safetensors', *there])}")
    return there[form]


# Fields that change no output of a trained model.
_FREE = ("family", "initializer", "dropout", "attention_dropout")
# Below this an eps is lost in the variance of any norm's input that is not itself next to nothing.
_SMALL_EPS = 1e-6


def _translate(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    names: Names,
    form: str,
    added: dict[str, Any],
    head_names: Mapping[str, str],
) -> tuple[dict[str, Any], list[Row], list[str]]:
    """Return a format's config.json, its rows, and notes on what that config.json, read back, leaves out.

    added: what else config.json holds.   head_names: as of `save`.
    Raises CheckpointError naming a field that the form cannot express.
    """
    if any(name.startswith("pooler.") for name in head_names):
        config = replace(config, pool="none")
    try:
        data = names.original(config) | config.generation | added
        rows = rows_of({name: each for name, each in state.items() if name not in head_names}, names.rows(config))
        again = names.config(json.loads(json.dumps(data)))
    except ConfigError as error:
        raise CheckpointError(f"the form {form!r} cannot hold this model: {error}; save as safetensors") from None
    before, after = _settings(config), _settings(with_heads(again, names, {row.theirs: None for row in rows}))
    notes = []
    for key in sorted(before | after):
        one, two, leaf = before.get(key), after.get(key), key.rpartition(".")[2]
        if one == two or leaf in _FREE:
            continue
        if leaf == "mask":
            notes.append(f"{key} is {one!r}, which that form does not say; load it again with mask={one!r}")
        elif leaf.endswith("_eps") and one and two and max(one, two) <= _SMALL_EPS:
            notes.append(f"{key} is {one:g} and becomes {two:g}, for that form has one eps for all norms")
        else:
            raise CheckpointError(
                f"{key} is {one!r}, but that form would make it {two!r}; save as safetensors, which keeps everything"
            )
    return data, rows + [Row((ours,), theirs) for ours, theirs in head_names.items()], notes


def _settings(config: ModelConfig) -> dict[str, Any]:
    """Flatten a configuration, "encoder.hidden_size" → 768, without the fields that have no effect."""
    flat = asdict(replace(config, generation={}))
    used = {
        "tied": config.output != "none",
        "logit_scale": config.output != "none",
        "head_norm_eps": config.output == "mlm",
        "head_activation": config.output == "mlm" or config.discriminator,
    }
    for side in ("encoder", "decoder"):
        stack = flat.pop(side) or {}
        position = stack.get("position")
        flat |= {f"{side}.{key}": value for key, value in stack.items()}
        used |= {
            f"{side}.positions": position == "learned",
            f"{side}.buckets": position == "buckets",
            f"{side}.bucket_distance": position == "buckets",
            f"{side}.relative_clip": position == "relative",
            f"{side}.embedding_norm_eps": stack.get("embedding_norm", False),
        }
    return {key: value for key, value in flat.items() if value is not None and used.get(key, True)}


def items_of(
    state: Mapping[str, Tensor],
    rows: Sequence[Row],
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Item]:
    """Yield the tensors to write that the rows make of `state`; dtype, progress: as for `save`."""

    def pieces(row: Row, parts: list[Tensor], dtype: torch.dtype) -> Iterator[Array]:
        """Yield a tensor's bytes in C order, in pieces so that a transposed or converted copy stays small."""
        tensor = export_row(row, parts)
        while tensor.ndim > 1 and len(tensor) == 1:
            tensor = tensor[0]
        step = max(1, PIECE * len(tensor) // (tensor.numel() * dtype.itemsize))
        for at in range(0, len(tensor), step):
            piece = tensor[at : at + step].to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
            yield piece
            if progress is not None:
                progress(piece.nbytes)

    for row in rows:
        parts = [state[name].detach() for name in row.ours]
        kinds = {dtype if dtype is not None and part.is_floating_point() else part.dtype for part in parts}
        if len(kinds) > 1:
            raise CheckpointError(
                f"{row.theirs} joins {', '.join(row.ours)}, which are of {' and '.join(sorted(map(_name, kinds)))}; "
                f"pass the dtype to save them in"
            )
        kind, shape = kinds.pop(), foreign_shape(row, [part.shape for part in parts])
        info = TensorInfo(row.theirs, _name(kind), shape, prod(shape) * kind.itemsize)
        yield row.theirs, (info, pieces(row, parts, kind))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _prefix_folder(prefix: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to fill with a prefix's files, which are renamed into the prefix's folder at the end.

    A folder that does not exist appears complete. In one that does, the `.index` comes last: without it the rest is no
    checkpoint. Raises CheckpointError if a file is there already.
    """
    if not prefix.parent.exists():
        with atomic_folder(prefix.parent) as made:
            yield made
        return

    def refuse(*files: Path) -> None:
        if not overwrite and (there := [file for file in files if file.exists()]):
            raise CheckpointError(
                f"{there[0]} exists; give a prefix in another folder, or replace it with overwrite=True"
            )

    index, config = prefix.with_name(f"{prefix.name}.index"), prefix.with_name("config.json")
    old = set(prefix.parent.glob(f"{escape(prefix.name)}.data-*"))
    refuse(index, config, *old)
    with partial_folder(prefix) as made:
        yield made
        files = sorted(made.iterdir(), key=lambda file: file.name == index.name)
        finals = [prefix.with_name(file.name) for file in files]
        refuse(*finals)
        with Staged() as staged:
            for file, final in zip(files, finals, strict=True):
                staged.place(file, final)
        for file in old - set(finals):
            file.unlink()
