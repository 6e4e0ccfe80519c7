"""Options that several commands have, each declared once; and tables of options, for commands that have many."""

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from typer import Option

__all__ = ["option", "plain", "with_options"]

Command = TypeVar("Command", bound=Callable[..., None])

WeightsKind = Literal["float32", "bfloat16", "int8", "int4"]
Weights = Annotated[WeightsKind | None, Option(help="Type of the weights in memory.", show_default="the checkpoint's")]
Model = Annotated[
    Path | None, Option(help="A checkpoint: prefix, file or folder.", show_default="the small one inside Hanmo")
]
Config = Annotated[Path | None, Option(help="The config.json, if not beside the checkpoint.")]
Family = Annotated[str | None, Option(help="The model family, if the tensor names fit several.")]
Tokenizer = Annotated[Path | None, Option(help="The vocabulary, if not beside the checkpoint.")]
PreTokenize = Annotated[
    bool | None,
    Option(
        help="Split texts into words with jieba first; default: if the vocabulary holds words (RoFormer, WoBERT).",
        show_default=False,
    ),
]
Mask = Annotated[Literal["causal", "prefix"] | None, Option(help="Make a BERT-like encoder generate text.")]
Device = Annotated[str, Option(help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one.")]
Threads = Annotated[int | None, Option(min=1, help="CPU threads.", show_default="one per core")]
Sequence = Annotated[
    int | None, Option(min=4, help="Tokens per row.", show_default="1024, or the model's positions if fewer")
]
Batch = Annotated[int, Option(min=1, help="Rows per batch.")]
Lora = Annotated[int | None, Option(min=1, help="Train adapters of this rank instead of all weights.")]
Memory = Annotated[
    str | None,
    Option(help="Memory to stay within, such as 22GiB, 22GB or 24G.", show_default="what is free on the device"),
]
Separator = Annotated[str | None, Option(help="Token after each document, such as [SEP].")]
Document = Annotated[Literal["file", "line", "paragraph"], Option(help="What one document of a text file is.")]
Json = Annotated[bool, Option("--json", help="Print JSON.")]


def option(kind: Any, help: str, *names: str, default: Any = None, **how: Any) -> tuple[Any, Any]:
    """Declare an option of a table: (annotation, default).

    names, how: as for `typer.Option`.   default: None if it may be left out, `Parameter.empty` if it must be given.
    """
    return Annotated[kind | None if default is None else kind, Option(*names, help=help, **how)], default


def with_options(table: Mapping[str, tuple[Any, Any]], **defaults: Any) -> Callable[[Command], Command]:
    """Give a command with `**options` the options of a table, {name: (annotation, default)}.

    defaults: of this command, in place of the table's.
    """

    def join(command: Command) -> Command:
        own = [each for each in signature(command).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        given = [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=defaults.get(name, default))
            for name, (kind, default) in table.items()
        ]
        command.__dict__["__signature__"] = Signature([*own, *given])  # which typer reads
        command.__annotations__ |= {name: kind for name, (kind, _) in table.items()}
        return command

    return join


def plain(value: Any) -> Any:
    """Convert the value of an option to what JSON can represent."""
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return str(value) if isinstance(value, Path) else value
