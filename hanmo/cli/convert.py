"""`hanmo convert`: write a checkpoint in another format. Tokenizer files are copied unread where that is possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from hanmo.cli import options as shared
from hanmo.cli.screen import counted, echo, say
from hanmo.errors import CheckpointError, TokenizerError

if TYPE_CHECKING:
    from hanmo.config import ModelConfig

_DST = "A new folder; for tensorflow also a prefix with '.ckpt' in its name."
_DTYPE = "Type of the parameters; default: each keeps its own."


def convert(
    source: Annotated[Path, Argument(metavar="SRC", help="The checkpoint, as for inspect.")],
    target: Annotated[Path, Argument(metavar="DST", help=_DST)],
    to: Annotated[
        Literal["safetensors", "tensorflow", "huggingface", "openvino"], Option(help="The format.", show_default=False)
    ],
    dtype: Annotated[Literal["float32", "bfloat16", "float16", "int8", "int4"] | None, Option(help=_DTYPE)] = None,
    config: shared.Config = None,
    family: shared.Family = None,
    overwrite: Annotated[bool, Option("--force", help="Replace what is at DST.")] = False,
) -> None:
    """Write a checkpoint in another format, bit for bit unless --dtype is given.

    safetensors is Hanmo's own folder, tensorflow has the original's names, huggingface is what transformers loads,
    openvino what OpenVINO GenAI runs (decoders, in float32 or the --dtype). Tokenizer files are copied. An interrupted
    run leaves no partial files. Prints the path to load.

    For example:

      hanmo convert models/mega/model.ckpt-100000 mega --to safetensors --dtype bfloat16

      hanmo convert mega mega-tf --to tensorflow

      hanmo convert chinese_L-12_H-768_A-12 bert --to huggingface

      hanmo convert mega mega-genai --to openvino --dtype int8
    """
    if target.suffix in (".safetensors", ".bin", ".index"):
        raise BadParameter(
            f"{target} ends in {target.suffix}; give a folder, or for tensorflow a prefix such as model.ckpt"
        )
    if to == "openvino":
        return _to_openvino(source, target, dtype, config, family, overwrite)
    if dtype == "int4":
        raise BadParameter("--dtype int4 is for --to openvino; expected float32, bfloat16, float16 or int8")
    _save(source, target, to, dtype, config, family, overwrite)


def _save(
    source: Path,
    target: Path,
    to: str,
    dtype: str | None,
    config: Path | None,
    family: str | None,
    overwrite: bool,
) -> None:
    from hanmo.checkpoint.load import FLOATS, as_dtype
    from hanmo.checkpoint.open import open_source
    from hanmo.checkpoint.save import save
    from hanmo.loading import load_network
    from hanmo.tokenizers.load import tokenizer_files

    path = target
    if to == "tensorflow" and (".ckpt" not in target.name or target.is_dir()):
        path = target / "model.ckpt"
    with open_source(source) as opened:
        origin = opened.path
        model, report = load_network(opened, config=config, family=family)
    _check_apart(target, path, origin, origin.parent)
    tokenizer: Any = tokenizer_files(origin.parent)
    if to == "huggingface":
        tokenizer = _for_transformers(model.config, origin.parent, tokenizer)
    kind = as_dtype(dtype, (*FLOATS, "int8"))
    total = sum(each.numel() * (kind or each.dtype).itemsize for each in model.parameters())
    with counted(f"writing {path.name}", total) as wrote:
        saved = save(model, path, form=to, dtype=kind, tokenizer=tokenizer, overwrite=overwrite, progress=wrote)
    for reason, count in Counter(report.dropped.values()).items():
        say(f"left out {count:,} tensor{'' if count == 1 else 's'}: {reason}")
    for note in saved.notes:
        say(note)
    echo(str(saved.path))


def _to_openvino(
    source: Path, target: Path, dtype: str | None, config: Path | None, family: str | None, overwrite: bool
) -> None:
    if dtype == "float16":
        raise BadParameter("--dtype float16 is not for --to openvino; expected float32, bfloat16, int8 or int4")
    from hanmo.checkpoint.open import locate, open_source
    from hanmo.export.openvino import export_openvino
    from hanmo.tokenizers.load import tokenizer_files

    found = locate(source)
    _check_apart(target, target, source, found.folder)

    def files(config: ModelConfig) -> Any:
        made = _for_transformers(config, found.folder, tokenizer_files(found.folder))
        return made if isinstance(made, dict) else {file.name: file for file in made}

    with open_source(found) as opened:
        total = sum(info.nbytes for info in opened.tensors.values())
    with counted(f"writing {target.name}", total) as read:
        path = export_openvino(
            found,
            target,
            weights=dtype or "float32",
            config=config,
            family=family,
            files=files,
            overwrite=overwrite,
            progress=read,
        )
    echo(str(path))


def _check_apart(target: Path, path: Path, *read: Path) -> None:
    """Raise CheckpointError if the path to write is one of those that are read."""
    if path.resolve() in [each.resolve() for each in read]:
        raise CheckpointError(f"{target} is what is read; give another place to write to")


def _for_transformers(config: ModelConfig, folder: Path, files: Sequence[Path]) -> Any:
    """Add what transformers needs to a tokenizer's files, if Hanmo can read them."""
    from hanmo.export.huggingface import huggingface_files
    from hanmo.pipeline import find_tokenizer

    try:
        tokenizer = find_tokenizer(folder, None, config)
        return files if tokenizer is None else huggingface_files(config, tokenizer, files)
    except TokenizerError as error:
        say(f"the tokenizer's files are copied as they are: {error}")
        return files
