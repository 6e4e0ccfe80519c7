"""`hanmo inspect`: describe a checkpoint, for a person or as JSON."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli import options as shared
from hanmo.cli.screen import echo, printable, progress, say
from hanmo.errors import CheckpointError, HanmoError

if TYPE_CHECKING:
    from hanmo.checkpoint.inspect import Inspection

__all__ = ["inspect"]

_PATH = (
    "A TensorFlow prefix (model.ckpt-100000), its .index alone, a .safetensors or .bin file, "
    "a Hugging Face or Hanmo folder, or a folder with any of these."
)
_FILES = {"tensorflow": "TensorFlow checkpoint", "safetensors": "safetensors", "torch": "torch file"}
_NAMES = {"tensorflow": "the original's", "huggingface": "Hugging Face's", "hanmo": "Hanmo's"}


def inspect(
    path: Annotated[Path, typer.Argument(help=_PATH, show_default=False)],
    as_json: shared.Json = False,
    sha256: Annotated[
        bool,
        typer.Option("--sha256", help="Also compute the SHA256 of the data; fail if it is not the released file's."),
    ] = False,
    config: Annotated[
        bool, typer.Option("--config", help="Print only the config.json that the checkpoint needs.")
    ] = False,
) -> None:
    """Describe a checkpoint: family, sizes, parameters, vocabulary, mismatches.

    No data is read, so the .index of a TensorFlow checkpoint is enough.

    For example:

      hanmo inspect models/mega/model.ckpt-100000

      hanmo inspect model.ckpt-100000.index --json

      hanmo inspect models/mega --config > models/mega/config.json
    """
    if as_json and config:
        raise typer.BadParameter("give --json or --config, not both; the JSON has the config in it")
    from hanmo.checkpoint.open import find_checkpoints

    paths = find_checkpoints(path)
    if len(paths) > 1 and config:
        names = ", ".join(each.name for each in paths[:10])
        raise CheckpointError(f"{path} holds {len(paths)} checkpoints ({names}); give the path of one of them")
    if len(paths) > 1:
        _list(path, paths, as_json=as_json, sha256=sha256)
        return
    found = _inspect(paths[0], sha256=sha256)
    if config:
        echo(_dump(found.config))
    elif as_json:
        echo(_dump(_as_dict(found)))
    else:
        _print(found)
    _check_sum([found])


def _inspect(path: Path, *, sha256: bool) -> Inspection:
    from hanmo.checkpoint.inspect import inspect as look

    if not sha256:
        return look(path)
    with progress(f"SHA256 of {path.name}") as show:
        return look(path, sha256=True, progress=show)


def _list(folder: Path, paths: list[Path], *, as_json: bool, sha256: bool) -> None:
    """Print a line, or an object, for each checkpoint of a folder; an unreadable one has its error instead."""
    found: list[Inspection] = []
    objects: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    for path in paths:
        name = path.name.removesuffix(".index")
        try:
            one = _inspect(path, sha256=sha256)
        except HanmoError as error:
            objects.append({"path": str(path), "error": str(error)})
            lines.append([name, f"not readable: {error}"])
            continue
        found.append(one)
        objects.append(_as_dict(one))
        size, rows = f"{one.found.parameters:,} parameters", f"{one.found.sizes['vocab_size']:,} rows"
        lines.append([name, one.found.family, size, one.found.dtype, rows, one.found.released or ""])
    if as_json:
        echo(_dump(objects))
    else:
        columns = zip_longest(*(line for line in lines if len(line) > 2), fillvalue="")
        widths = [max(map(len, column)) for column in columns] or [0]
        widths[0] = max(len(line[0]) for line in lines)
        for line in lines:
            echo("  ".join(map(str.ljust, line, widths)).rstrip())
        say(f"{folder} holds {len(paths)} checkpoints; give the path of one to see more")
    if not found:
        raise CheckpointError(f"none of the {len(paths)} checkpoints in {folder} can be read")
    _check_sum(found)


def _print(one: Inspection) -> None:
    found, stack = one.found, one.found.config.main
    nbytes = sum(file.bytes if file.bytes is not None else file.expected or 0 for file in one.files)
    layers = [str(each.num_layers) for each in (found.config.encoder, found.config.decoder) if each is not None]
    context = f", {stack.context:,} positions" if stack.context else ""
    rows = f"{found.sizes['vocab_size']:,} rows"
    if one.vocabulary is not None:
        rows += f", {one.vocabulary[1]:,} words in {one.vocabulary[0].name}"
    _field("checkpoint", str(one.path))
    if found.released:
        _field("released as", found.released)
    _field("family", found.family)
    _field("parameters", f"{found.parameters:,} in {found.own:,} tensors, {found.dtype}")
    _field("vocabulary", rows)
    _field(
        "sizes",
        f"{' + '.join(layers)} layers, hidden size {stack.hidden_size:,}, {stack.num_heads} heads of {stack.head_dim}, "
        f"feed-forward {stack.feed_forward:,}{context}",
    )
    files = f"{_count(len(one.files), 'data file')} of {nbytes:,} bytes"
    _field("format", f"{_FILES[one.format]}, {_NAMES[found.format]} names, {files}")
    for reason, count in found.left.items():
        _field("beside it", f"{reason}: {_count(count, 'tensor')}")
    for file in one.files:
        if file.sha256 is not None:
            released = ", the released file" if file.sha256 == found.sha256 else ""
            _field("SHA256", f"{file.sha256}  {file.path.name}{released}")
    for note in one.notes:
        _field("note", note)
    for problem in one.problems:
        _field("does not fit", problem, color=typer.colors.RED)
    if _pre_tokenizes(one):
        _field("words", "jieba cuts texts into words first (pip install 'hanmo[cpm]'); not with --no-pre-tokenize")
    if one.config_file is None:
        _field("config.json", "none is here; save this one beside the checkpoint (or use --config)")
        echo(_dump(one.config))
    else:
        fixes = f"; {', '.join(found.fixes)} must change, see --config" if found.fixes and found.mismatches else ""
        _field("config.json", f"{one.config_file.name}{fixes}")


def _as_dict(one: Inspection) -> dict[str, Any]:
    return one.as_dict() | {"pre_tokenize": "jieba" if _pre_tokenizes(one) else None}


def _pre_tokenizes(one: Inspection) -> bool:
    """Tell whether the tokenizer beside a checkpoint splits texts into words first; False if it cannot be read."""
    from hanmo.tokenizers.load import load_tokenizer
    from hanmo.tokenizers.wordpiece import WordPiece

    try:
        tokenizer = load_tokenizer(one.path.parent)
    except HanmoError:
        return False
    return isinstance(tokenizer, WordPiece) and tokenizer.pre_tokenizes


def _field(name: str, value: str, *, color: str | None = None) -> None:
    typer.echo(typer.style(f"{name:<13}", bold=True, fg=color) + printable(value))


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _check_sum(found: list[Inspection]) -> None:
    for one in found:
        sums = {file.sha256 for file in one.files}
        if one.found.sha256 and None not in sums and sums != {one.found.sha256}:
            raise CheckpointError(f"{one.path} is not the released file: its SHA256 is {', '.join(map(str, sums))}")
