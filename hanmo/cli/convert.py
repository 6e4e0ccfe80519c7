"""`hanmo convert`: write a checkpoint in another form. Knows paths and messages, and copies vocabularies unread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli.screen import echo, progress, say
from hanmo.errors import CheckpointError, TokenizerError

if TYPE_CHECKING:
    from hanmo.checkpoint.load import Report
    from hanmo.checkpoint.save import Saved
    from hanmo.model import Model

__all__ = ["convert"]


class Form(str, Enum):
    """What can be written."""

    safetensors = "safetensors"
    tensorflow = "tensorflow"
    huggingface = "huggingface"


class Dtype(str, Enum):
    """Of the floating parameters in the new file."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The checkpoint, as for inspect.", show_default=False)],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="DST",
            help="A new folder; for tensorflow also a prefix that has '.ckpt' in its name.",
            show_default=False,
        ),
    ],
    to: Annotated[Form, typer.Option("--to", help="The form to write.", show_default=False)],
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Of the parameters; without it each keeps its own.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The config.json to read SRC by, if another than lies there.")
    ] = None,
    family: Annotated[str | None, typer.Option("--family", help="What SRC is, where its names fit several.")] = None,
    overwrite: Annotated[bool, typer.Option("--force", help="Replace what lies at DST.")] = False,
) -> None:
    """Write a checkpoint in another form, bit for bit unless --dtype is given.

    safetensors is Hanmo's own folder, tensorflow has the original's names, huggingface is what transformers loads.
    Tokenizer files go along. If it is interrupted, nothing half written is left. Prints the path to load.

    For example:

      hanmo convert models/mega/model.ckpt-100000 mega --to safetensors --dtype bfloat16

      hanmo convert mega mega-tf --to tensorflow

      hanmo convert chinese_L-12_H-768_A-12 bert --to huggingface
    """
    if target.suffix in (".safetensors", ".bin", ".index"):
        raise typer.BadParameter(
            f"{target} ends in {target.suffix}; give a folder"
            + (", or a prefix such as model.ckpt" if to is Form.tensorflow else "")
        )
    from hanmo.tokenizers.load import tokenizer_files

    path = _prefix(target) if to is Form.tensorflow else target
    model, report, origin = _load(source, config=config, family=family)
    if path.resolve() in (origin.resolve(), origin.parent.resolve()):
        raise CheckpointError(f"{target} is what is read; give another place to write to")
    saved = _save(
        model,
        path,
        form=to.value,
        dtype=None if dtype is None else dtype.value,
        tokenizer=_beside(model, origin.parent) if to is Form.huggingface else tokenizer_files(origin.parent),
        overwrite=overwrite,
    )
    for reason, count in Counter(report.dropped.values()).items():
        say(f"left out {count:,} tensor{'' if count == 1 else 's'}: {reason}")
    for note in saved.notes:
        say(note)
    echo(str(saved.path))


def _load(source: Path, *, config: Path | None, family: str | None) -> tuple[Model, Report, Path]:
    """Load the network alone: the tokenizer's files are copied, and need not be ones that Hanmo reads."""
    from hanmo.checkpoint.open import open_source
    from hanmo.loading import load_network

    with open_source(source) as opened:
        return *load_network(opened, config=config, family=family), opened.path


def _beside(model: Model, folder: Path) -> Sequence[Path] | Mapping[str, Path | dict[str, Any]]:
    """Give a tokenizer's files with what transformers wants to be told of it, where Hanmo reads it."""
    from hanmo.pipeline import find_tokenizer
    from hanmo.tokenizers.huggingface import huggingface_files
    from hanmo.tokenizers.load import tokenizer_files

    files = tokenizer_files(folder)
    try:
        tokenizer = find_tokenizer(folder, None, model.config)
        return files if tokenizer is None else huggingface_files(model.config, tokenizer, files)
    except TokenizerError as error:
        say(f"the tokenizer's files are copied as they are: {error}")
        return files


def _save(
    model: Model,
    path: Path,
    *,
    form: str,
    dtype: str | None,
    tokenizer: Sequence[Path] | Mapping[str, Path | dict[str, Any]],
    overwrite: bool,
) -> Saved:
    from hanmo.checkpoint.load import FLOATS, as_dtype
    from hanmo.checkpoint.save import save

    kind = as_dtype(dtype, (*FLOATS, "int8"))
    total = sum(each.numel() * (kind or each.dtype).itemsize for each in model.parameters())
    done = 0
    with progress(f"writing {path.name}") as show:

        def wrote(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            show(done, total)

        return save(model, path, form=form, dtype=kind, tokenizer=tokenizer, overwrite=overwrite, progress=wrote)


def _prefix(target: Path) -> Path:
    """Tell a prefix from a folder: `out` is a folder, where model.ckpt is put; `out/bert.ckpt-9` is a prefix."""
    return target if ".ckpt" in target.name and not target.is_dir() else target / "model.ckpt"
