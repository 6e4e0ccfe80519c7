"""Options that several commands have, each declared once, and how a command gets a group of them."""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

__all__ = ["plain", "with_options"]

Command = TypeVar("Command", bound=Callable[..., None])


WeightsKind = Literal["float32", "bfloat16", "int8", "int4"]
Weights = Annotated[
    WeightsKind | None, typer.Option(help="Type of the weights in memory.", show_default="the checkpoint's")
]
Model = Annotated[
    Path | None, typer.Option(help="A checkpoint: prefix, file or folder.", show_default="the small one inside Hanmo")
]
Config = Annotated[Path | None, typer.Option(help="The config.json, if not beside the checkpoint.")]
Family = Annotated[str | None, typer.Option(help="The model family, if the tensor names fit several.")]
Tokenizer = Annotated[Path | None, typer.Option(help="The vocabulary, if not beside the checkpoint.")]
PreTokenize = Annotated[
    bool | None,
    typer.Option(
        help="Split texts into words with jieba first; default: if the vocabulary holds words (RoFormer, WoBERT).",
        show_default=False,
    ),
]
Mask = Annotated[Literal["causal", "prefix"] | None, typer.Option(help="Make a BERT-like encoder generate text.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="one per core")]
Sequence = Annotated[
    int | None, typer.Option(min=4, help="Tokens per row.", show_default="1024, or the model's positions if fewer")
]
Batch = Annotated[int, typer.Option(min=1, help="Rows per batch.")]
Lora = Annotated[int | None, typer.Option(min=1, help="Train adapters of this rank instead of all weights.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory to stay within, such as 22GiB, 22GB or 24G.", show_default="what is free on the device"),
]
Separator = Annotated[str | None, typer.Option(help="Token after each document, such as [SEP].")]
Document = Annotated[Literal["file", "line", "paragraph"], typer.Option(help="What one document of a text file is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_options(declared: Callable[..., None], **defaults: Any) -> Callable[[Command], Command]:
    """Replace a command's `**options` by the parameters of `declared`, some of them with other defaults.

    All parameters of both must be keyword-only, but for a command's arguments.
    """

    def join(command: Command) -> Command:
        own = [each for each in signature(command).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        shared = [
            each.replace(default=defaults.get(name, each.default))
            for name, each in signature(declared).parameters.items()
        ]
        command.__dict__["__signature__"] = Signature([*own, *shared])  # which typer reads
        command.__annotations__ |= declared.__annotations__
        return command

    return join


def plain(value: Any) -> Any:
    """Convert the value of an option to what JSON can represent."""
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return str(value) if isinstance(value, Path) else value
