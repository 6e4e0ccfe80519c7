"""Options that several commands have, each declared once; and tables of options, for commands that have many."""

import json
import sys
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from typer import Context, Option

from hanmo.errors import ConfigError, MissingFile
from hanmo.files import errors_as, read_bytes, read_json

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


OPENING: dict[str, tuple[Any, Any]] = {
    "config": (Config, None),
    "family": (Family, None),
    "tokenizer": (Tokenizer, None),
    "pre_tokenize": (PreTokenize, None),
    "mask": (Mask, None),
}
"""The arguments of `hanmo.load` that are options, for `with_options`."""


def option(kind: Any, help: str, *names: str, default: Any = None, **how: Any) -> tuple[Any, Any]:
    """Declare an option of a table: (annotation, default).

    names, how: as for `typer.Option`.   default: None if it may be left out, `Parameter.empty` if it must be given.
    """
    return Annotated[kind | None if default is None else kind, Option(*names, help=help, **how)], default


SPECULATION = option(
    Literal["auto", "off"], "Draft repeated tokens and verify several in a step; no text changes.", default="auto"
)


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


def run_options(context: Context) -> dict[str, Any]:
    """Return the options of a command that trains as plain values, and its name.

    A resumed run keeps its own, of OUT/options.json, where the command line gives no other.
    Raises MissingFile and ConfigError for a folder that does not hold what is asked for.
    """
    given = {name: plain(value) for name, value in context.params.items()}
    out, command = Path(given["out"]), context.info_name
    if given["resume"]:
        kept = out / "options.json"
        if not kept.is_file():
            raise MissingFile(f"{out} holds no run to go on with ({kept.name} is missing); leave --resume out to begin")
        before = read_json(kept, error=ConfigError, advice="; begin again with another --out")
        if before.get("command") != command:
            raise ConfigError(f"the run in {out} was begun by another command than {command}; resume it with that one")
        for each in context.command.params:
            name = str(each.name)
            source = context.get_parameter_source(name)
            if name in before and (source is None or source.name != "COMMANDLINE"):
                with errors_as(ConfigError, f"{kept} says that {name} is {before[name]!r}", advice="; mend it"):
                    given[name] = plain(each.process_value(context, before[name]))
    elif any(out.glob("last-*")) or any(out.glob("*/last-*")):
        raise ConfigError(f"{out} holds a run; go on with it by --resume, or give another --out")
    return given | {"command": command}


def keep_options(out: Path, given: Mapping[str, Any]) -> None:
    """Write OUT/options.json, from which `run_options` reads the options of a run that is resumed."""
    from hanmo.checkpoint.staged import atomic_path

    kept = {name: value for name, value in given.items() if name not in ("resume", "out")}
    with atomic_path(out / "options.json") as made:
        made.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", "utf-8")


def read_options(context: Context, path: Path | None) -> Path | None:
    """Take the options of a command from a TOML or JSON file, where the command line does not give them.

    Keys are names of options, with - or _; a table is an option of NAME=VALUE pairs. The callback of an eager option.
    Raises ConfigError for what is no such file and for an unknown key, MissingFile.
    """
    if path is None:
        return None
    params = [each for each in context.command.params if each.name not in ("config", "resume", "help")]
    known = {name.lstrip("-").replace("-", "_"): each for each in params for name in (str(each.name), *each.opts)}
    found: dict[str, Any] = {}
    for key, value in _settings_of(path).items():
        option = known.get(key.replace("-", "_"))
        if option is None:
            names = sorted(each.opts[0].lstrip("-") for each in params)
            raise ConfigError(f"{path}: the key {key!r} is unknown; known are {', '.join(names)}")
        if isinstance(value, dict):
            value = [f"{name}={json.dumps(each, ensure_ascii=False)}" for name, each in value.items()]
        found[str(option.name)] = value
    context.default_map = {**(context.default_map or {}), **found}
    return path


def _settings_of(path: Path) -> dict[str, Any]:
    if path.suffix != ".toml":
        settings: dict[str, Any] = read_json(path, error=ConfigError, unique=True)
        return settings
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    with errors_as(ConfigError, f"{path} is no TOML file"):
        return tomllib.loads(read_bytes(path, error=ConfigError).decode("utf-8-sig"))
