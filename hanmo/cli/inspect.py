"""`hanmo inspect`: describe a checkpoint, for a person or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from hanmo.cli import options as shared
from hanmo.cli.screen import aligned, echo, echo_json, printable, progress, say
from hanmo.errors import CheckpointError, HanmoError

if TYPE_CHECKING:
    from hanmo.checkpoint.inspect import Inspection

_PATH = (
    "A TensorFlow prefix (model.ckpt-100000), its .index alone, a .safetensors or .bin file, "
    "a Hugging Face or Hanmo folder, or a folder with any of these."
)
_SHA256 = "Also compute the SHA256 of the data; fail if it is not the released file's."
_FILES = {"tensorflow": "TensorFlow checkpoint", "safetensors": "safetensors", "torch": "torch file"}
_NAMES = {
    "tensorflow": "the original's",
    "huggingface": "Hugging Face's",
    "republished": "Hugging Face's",
    "hanmo": "Hanmo's",
}


def inspect(
    path: Annotated[Path, Argument(help=_PATH, show_default=False)],
    as_json: shared.Json = False,
    sha256: Annotated[bool, Option("--sha256", help=_SHA256)] = False,
    config: Annotated[bool, Option("--config", help="Print only the config.json that the checkpoint needs.")] = False,
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
    from hanmo.checkpoint.inspect import inspect as look
    from hanmo.checkpoint.open import find_checkpoints

    paths = find_checkpoints(path)
    several = len(paths) > 1
    if several and config:
        names = ", ".join(each.name for each in paths[:10])
        raise CheckpointError(f"{path} holds {len(paths)} checkpoints ({names}); give the path of one of them")
    found: dict[Path, Inspection | HanmoError] = {}
    for each in paths:
        try:
            with progress(f"SHA256 of {each.name}") if sha256 else nullcontext() as show:
                found[each] = look(each, sha256=sha256, progress=show)
        except HanmoError as error:
            if not several:
                raise
            found[each] = error
    readable = [one for one in found.values() if not isinstance(one, HanmoError)]
    if config:
        echo_json(readable[0].config)
    elif as_json:
        objects = [_as_dict(each, one) for each, one in found.items()]
        echo_json(objects if several else objects[0])
    elif several:
        echo(_list(found))
        say(f"{path} holds {len(paths)} checkpoints; give the path of one to see more")
    else:
        for name, value in _fields(readable[0]):
            color = typer.colors.RED if name == "does not fit" else None
            typer.echo(typer.style(f"{name:<13}", bold=True, fg=color) + printable(value))
        if readable[0].config_file is None:
            echo_json(readable[0].config)
    if not readable:
        raise CheckpointError(f"none of the {len(paths)} checkpoints in {path} can be read")
    for one in readable:
        sums = {file.sha256 for file in one.files}
        if one.found.sha256 and None not in sums and sums != {one.found.sha256}:
            raise CheckpointError(f"{one.path} is not the released file: its SHA256 is {', '.join(map(str, sums))}")


def _as_dict(path: Path, one: Inspection | HanmoError) -> dict[str, Any]:
    if isinstance(one, HanmoError):
        return {"path": str(path), "error": str(one)}
    return one.as_dict() | {"pre_tokenize": "jieba" if _pre_tokenizes(one) else None}


def _list(found: Mapping[Path, Inspection | HanmoError]) -> str:
    """Describe each checkpoint of a folder in a line; an unreadable one has its error instead."""
    lines = []
    for path, one in found.items():
        name = path.name.removesuffix(".index")
        if isinstance(one, HanmoError):
            lines.append([name, f"not readable: {one}"])
            continue
        size, rows = f"{one.found.parameters:,} parameters", f"{one.found.sizes['vocab_size']:,} rows"
        lines.append([name, one.found.family, size, one.found.dtype, rows, one.found.released or ""])
    return aligned(lines)


def _fields(one: Inspection) -> Iterator[tuple[str, str]]:
    found, stack = one.found, one.found.config.main
    yield "checkpoint", str(one.path)
    if found.released:
        yield "released as", found.released
    yield "family", found.family
    yield "parameters", f"{found.parameters:,} in {found.own:,} tensors, {found.dtype}"
    words = "" if one.vocabulary is None else f", {one.vocabulary[1]:,} words in {one.vocabulary[0].name}"
    yield "vocabulary", f"{found.sizes['vocab_size']:,} rows{words}"
    layers = [str(each.num_layers) for each in (found.config.encoder, found.config.decoder) if each is not None]
    heads, context = f"{stack.num_heads} heads of {stack.head_dim}", stack.context
    sizes = f"{' + '.join(layers)} layers, hidden size {stack.hidden_size:,}, {heads}, feed-forward"
    yield "sizes", f"{sizes} {stack.feed_forward:,}" + (f", {context:,} positions" if context else "")
    nbytes = sum(file.bytes if file.bytes is not None else file.expected or 0 for file in one.files)
    files = f"{_count(len(one.files), 'data file')} of {nbytes:,} bytes"
    yield "format", f"{_FILES[one.format]}, {_NAMES[found.format]} names, {files}"
    for reason, count in found.left.items():
        yield "beside it", f"{reason}: {_count(count, 'tensor')}"
    for file in one.files:
        if file.sha256 is not None:
            yield "SHA256", f"{file.sha256}  {file.path.name}" + ", the released file" * (file.sha256 == found.sha256)
    for note in one.notes:
        yield "note", note
    for problem in one.problems:
        yield "does not fit", problem
    if _pre_tokenizes(one):
        yield "words", "jieba cuts texts into words first (pip install 'hanmo[cpm]'); not with --no-pre-tokenize"
    fixes = f"; {', '.join(found.fixes)} must change, see --config" if found.fixes and found.mismatches else ""
    missing = "none is here; save this one beside the checkpoint (or use --config)"
    yield "config.json", missing if one.config_file is None else f"{one.config_file.name}{fixes}"


def _pre_tokenizes(one: Inspection) -> bool:
    """Tell whether the tokenizer beside a checkpoint splits texts into words first; False if it cannot be read."""
    from hanmo.tokenizers.load import load_tokenizer
    from hanmo.tokenizers.wordpiece import WordPiece

    try:
        tokenizer = load_tokenizer(one.path.parent)
    except HanmoError:
        return False
    return isinstance(tokenizer, WordPiece) and tokenizer.pre_tokenizes


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
