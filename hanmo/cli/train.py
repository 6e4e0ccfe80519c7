"""`hanmo finetune` and `hanmo pretrain`: options in, a trained model out. `hanmo.finetune` does the work.

Knows options, and how those of a run that goes on are found again: OUT/options.json. Everything is said on standard
error.
"""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.screen import progress, say, translating_console
from hanmo.cli.write import Mask, PreTokenize
from hanmo.cores import set_torch_threads
from hanmo.errors import ConfigError, MissingFile
from hanmo.files import errors_as, read_json

__all__ = ["finetune", "pretrain"]


class Optimizer(str, Enum):
    """What updates the weights."""

    adafactor = "adafactor-gpt2-ml"
    adafactor_bert4keras = "adafactor-bert4keras"
    adamw = "adamw"
    muon = "muon"


class Precision(str, Enum):
    """What weights are, and what is computed in."""

    float32 = "float32"
    mixed = "mixed"
    bfloat16 = "bfloat16"


class Schedule(str, Enum):
    """How the learning rate sinks."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class Document(str, Enum):
    """What one document of a text file is."""

    file = "file"
    line = "line"
    paragraph = "paragraph"


class Form(str, Enum):
    """What the result is also saved as."""

    safetensors = "safetensors"
    tensorflow = "tensorflow"


_Out = Annotated[Path, typer.Option("--out", help="Folder of the run: checkpoints, log, curves.", show_default=False)]
_Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Text (txt, jsonl, csv, folders), packed files, or pairs.", show_default=False),
]
_Valid = Annotated[list[Path] | None, typer.Option("--valid", help="To evaluate on; default: a share of the data.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, by its own options.")]
_Family = Annotated[str | None, typer.Option(help="The family, where names fit several.")]
_Tokenizer = Annotated[Path | None, typer.Option(help="The vocabulary, if not beside the checkpoint.")]
_Sequence = Annotated[int | None, typer.Option(min=4, help="Tokens of a row; default: all the model knows, to 1024.")]
_Batch = Annotated[int, typer.Option(min=1, help="Rows of an update.")]
_Accumulate = Annotated[int, typer.Option(min=1, help="Parts that they are computed in, to save memory.")]
_Steps = Annotated[int | None, typer.Option(min=1, help="Updates to make.")]
_Minutes = Annotated[float | None, typer.Option(help="As many updates as fit.")]
_Epochs = Annotated[float | None, typer.Option(help="Readings of the data.", show_default="3")]
_Lr = Annotated[float | None, typer.Option(help="Highest learning rate; default: the optimizer's.")]
_Warmup = Annotated[int | None, typer.Option(min=0, help="Updates up to it; default: a tenth.")]
_Schedule = Annotated[Schedule, typer.Option(help="How the rate sinks.")]
_Clip = Annotated[float | None, typer.Option(help="Largest norm of the whole gradient, which must be held then.")]
_Average = Annotated[float, typer.Option(help="Momentum of a moving average of the weights, tried at the end.")]
_Precision = Annotated[
    Precision | None, typer.Option(help="float32; mixed: computes in bfloat16; bfloat16: weights. Default: what fits.")
]
_Recompute = Annotated[
    bool | None,
    typer.Option("--recompute/--no-recompute", help="Compute blocks twice. Default: if memory asks for it."),
]
_Memory = Annotated[str | None, typer.Option(help="Stay within so much, such as 8GiB; default: what is free.")]
_Early = Annotated[int | None, typer.Option(min=1, help="End after so many evaluations without a better score.")]
_Every = Annotated[int | None, typer.Option(min=1, help="Updates between evaluations; default: a tenth of all.")]
_Held = Annotated[float, typer.Option(help="Share of the data that is held out.")]
_Separator = Annotated[str | None, typer.Option(help="Token put after each document, such as [SEP].")]
_Document = Annotated[Document, typer.Option(help="What one document of a text file is.")]
_Prompt = Annotated[list[str] | None, typer.Option(help="Write on from this at every evaluation; several times.")]
_Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one.")]
_Threads = Annotated[int | None, typer.Option(min=1, help="Of the processor, to compute with; default: its cores.")]
_Compile = Annotated[bool, typer.Option("--compile", help="Compile the network with torch first.")]
_Seed = Annotated[int, typer.Option(help="Of order, dropout and fresh weights.")]
_Board = Annotated[bool, typer.Option("--tensorboard", help="Show the run in TensorBoard, from OUT/tensorboard.")]
_Form = Annotated[Form, typer.Option(help="tensorflow: also save the best in the original's form.")]


def finetune(
    context: typer.Context,
    out: _Out,
    model: Annotated[Path | None, typer.Option(help="The checkpoint to begin from.", show_default=False)] = None,
    data: _Data = None,
    valid: _Valid = None,
    resume: _Resume = False,
    config: Annotated[Path | None, typer.Option(help="The config.json, if not beside the checkpoint.")] = None,
    family: _Family = None,
    tokenizer: _Tokenizer = None,
    pre_tokenize: PreTokenize = None,
    mask: Annotated[Mask | None, typer.Option(help="Have a BERT-like encoder learn to write.")] = None,
    sequence: _Sequence = None,
    batch: _Batch = 1,
    accumulate: _Accumulate = 1,
    steps: _Steps = None,
    minutes: _Minutes = None,
    epochs: _Epochs = None,
    optimizer: Annotated[
        Optimizer | None, typer.Option(help="Default: adafactor-gpt2-ml; adamw with --lora.", show_default=False)
    ] = None,
    lr: _Lr = None,
    warmup: _Warmup = None,
    schedule: _Schedule = Schedule.linear,
    clip: _Clip = None,
    average: _Average = 0.0,
    precision: _Precision = None,
    recompute: _Recompute = None,
    lora: Annotated[int | None, typer.Option(min=1, help="Train adapters of this rank instead of all weights.")] = None,
    restore_slots: Annotated[
        bool, typer.Option("--restore-slots", help="Go on from AdaFactor's moments in the checkpoint.")
    ] = False,
    memory: _Memory = None,
    early_stopping: _Early = None,
    evaluate_every: _Every = None,
    held_out: _Held = 0.05,
    separator: _Separator = None,
    document: _Document = Document.file,
    prompt: _Prompt = None,
    device: _Device = "auto",
    threads: _Threads = None,
    compile: _Compile = False,
    seed: _Seed = 0,
    tensorboard: _Board = False,
    form: _Form = Form.safetensors,
) -> None:
    """Train a checkpoint on one's own text.

    [bold]hanmo finetune --model gpt2/model.ckpt-100000 --data novel.txt --out tuned[/bold]

    All weights learn, in the memory of an 8 GB card for 1.4 billion of them. Ctrl-C saves; --resume goes on.
    """
    given = _options(context)
    if given["model"] is None:
        raise typer.BadParameter("give --model, the checkpoint to begin from")
    from hanmo.finetune import finetune as tune

    _run(given, lambda **known: tune(Path(given["model"]), config=_path(given["config"]), **known))


def pretrain(
    context: typer.Context,
    out: _Out,
    config: Annotated[
        Path | None, typer.Option(help="A hanmo.json, or a config.json of any family.", show_default=False)
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The vocabulary: file or folder.", show_default=False)] = None,
    pre_tokenize: PreTokenize = None,
    data: _Data = None,
    valid: _Valid = None,
    resume: _Resume = False,
    family: _Family = None,
    mask: Annotated[Mask | None, typer.Option(help="Make a writer of a BERT-like encoder.")] = None,
    sequence: _Sequence = None,
    batch: _Batch = 8,
    accumulate: _Accumulate = 1,
    steps: _Steps = None,
    minutes: _Minutes = None,
    epochs: _Epochs = None,
    optimizer: Annotated[Optimizer, typer.Option(help="What updates the weights.")] = Optimizer.adamw,
    lr: _Lr = None,
    warmup: _Warmup = None,
    schedule: _Schedule = Schedule.cosine,
    clip: _Clip = None,
    average: _Average = 0.0,
    precision: _Precision = None,
    recompute: _Recompute = None,
    memory: _Memory = None,
    early_stopping: _Early = None,
    evaluate_every: _Every = None,
    held_out: _Held = 0.05,
    separator: _Separator = None,
    document: _Document = Document.file,
    prompt: _Prompt = None,
    device: _Device = "auto",
    threads: _Threads = None,
    compile: _Compile = False,
    seed: _Seed = 0,
    tensorboard: _Board = False,
    form: _Form = Form.safetensors,
) -> None:
    """Train a new model of any family from the start.

    [bold]hanmo pretrain --config config.json --family gpt2_ml --tokenizer vocab.txt --data corpus --out run[/bold]
    """
    given = _options(context)
    for name in ("config", "tokenizer"):
        if given[name] is None:
            raise typer.BadParameter(f"give --{name}; a fresh model needs both --config and --tokenizer")
    from hanmo.finetune import pretrain as tune

    _run(given, lambda **known: tune(Path(given["config"]), **known))


def _options(context: typer.Context) -> dict[str, Any]:
    """Give the options as plain values; those of a run that goes on are its own where the command names no other."""
    given = {name: _plain(value) for name, value in context.params.items()}
    out, kept = Path(given["out"]), Path(given["out"]) / "options.json"
    command = context.info_name
    if given["resume"]:
        if not kept.is_file():
            raise MissingFile(f"{out} holds no run to go on with ({kept.name} is missing); leave --resume out to begin")
        before = read_json(kept, error=ConfigError, advice="; begin again with another --out")
        if before.get("command") != command:
            raise ConfigError(f"the run in {out} was begun by another command than {command}; resume it with that one")
        for option in context.command.params:
            name = str(option.name)
            source = context.get_parameter_source(name)
            if name in before and (source is None or source.name != "COMMANDLINE"):
                with errors_as(ConfigError, f"{kept} says that {name} is {before[name]!r}", advice="; mend it"):
                    given[name] = _plain(option.process_value(context, before[name]))
    elif any(out.glob("last-*")):
        raise ConfigError(f"{out} holds a run; go on with it by --resume, or give another --out")
    if not given["data"]:
        raise typer.BadParameter("give --data: text, packed files, or pairs")
    return given | {"command": command}


def _plain(value: Any) -> Any:
    """Give an option's value as JSON knows it."""
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def _keep(given: dict[str, Any], out: Path) -> None:
    """Write the options of a run that begins beside it."""
    from hanmo.checkpoint.staged import atomic_path

    kept = {name: value for name, value in given.items() if name not in ("resume", "out")}
    with atomic_path(out / "options.json") as made:
        made.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _run(given: dict[str, Any], tune: Any) -> None:
    """Do the run, in as many processes as torchrun started, and end as it was asked to."""
    import torch

    from hanmo.finetune import Run, Wishes
    from hanmo.training import distributed
    from hanmo.training.checkpoints import locked
    from hanmo.training.memory import parse_size

    set_torch_threads(given["threads"])
    if given["device"] == "auto":
        given["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    names = [name for name in given if name in Wishes.__dataclass_fields__]
    wishes = Wishes(
        **{name: given[name] for name in names if name != "memory"},
        memory=given["memory"] and parse_size(given["memory"]),
    )
    out = Path(given["out"])
    run = Run(
        out,
        [Path(path) for path in given["data"]],
        [Path(path) for path in given["valid"] or ()],
        prompts=given["prompt"] or (),
        resume=given["resume"],
        board=given["tensorboard"],
        form=given["form"],
    )
    with distributed.started(given["device"]) as device, locked(out), progress("packing") as shown:
        if distributed.is_main() and not run.resume:
            _keep(given, out)
        outcome = tune(
            run=run,
            wishes=wishes,
            device=device,
            family=given["family"],
            mask=given["mask"],
            tokenizer=_path(given["tokenizer"]),
            console=translating_console(quiet=not distributed.is_main()),
            progress=shown,
        )
    if outcome.stopped:
        say(f"stopped after step {outcome.steps}, saved; go on with --out {out} --resume")
        raise typer.Exit(130)
