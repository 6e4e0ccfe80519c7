"""`hanmo finetune` and `hanmo pretrain`: options in, a trained model out. `hanmo.finetune` does the work.

Knows options, and how those of a resumed run are found: in OUT/options.json. All messages go to standard error.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hanmo.cli import options as shared
from hanmo.cli.options import plain, with_options
from hanmo.cli.screen import progress, say, translating_console
from hanmo.cores import set_torch_threads
from hanmo.errors import ConfigError, MissingFile
from hanmo.files import errors_as, read_json

__all__ = ["finetune", "pretrain"]


Rate = Annotated[float | None, typer.Option(help="Peak learning rate; default: the optimizer's.")]
Precision = Annotated[
    Literal["float32", "mixed", "bfloat16"] | None,
    typer.Option(help="mixed computes in bfloat16; bfloat16 also has such weights. Default: what fits."),
]
Recompute = Annotated[bool | None, typer.Option(help="Recompute activations. Default: if memory requires it.")]
Evaluate = Annotated[int | None, typer.Option(min=1, help="Steps between evaluations; default: a tenth of all.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Log to OUT/tensorboard too.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, with its own options.")]


def _training(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log, curves.", show_default=False)],
    data: Annotated[
        list[Path] | None, typer.Option(help="Text (txt, jsonl, csv, folders), packed files, or pairs.")
    ] = None,
    valid: Annotated[list[Path] | None, typer.Option(help="Validation data; default: a share of the data.")] = None,
    resume: Resume = False,
    family: shared.Family = None,
    pre_tokenize: shared.PreTokenize = None,
    mask: shared.Mask = None,
    sequence: shared.Sequence = None,
    batch: shared.Batch = 1,
    accumulate: Annotated[int, typer.Option(min=1, help="Parts that a batch is computed in, to save memory.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of updates.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long, evaluations included.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.", show_default="3")] = None,
    optimizer: Annotated[
        Literal["adafactor-gpt2-ml", "adafactor-bert4keras", "adamw", "muon"] | None,
        typer.Option(help="Default: adamw; to finetune without --lora adafactor-gpt2-ml."),
    ] = None,
    lr: Rate = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps of warmup; default: a tenth.")] = None,
    schedule: Annotated[
        Literal["linear", "cosine", "constant"], typer.Option(help="How the learning rate decays.")
    ] = "linear",
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm; keeps all gradients in memory.")] = None,
    average: Annotated[float, typer.Option(help="Momentum of a moving average of the weights; 0 is off.")] = 0.0,
    precision: Precision = None,
    recompute: Recompute = None,
    memory: shared.Memory = None,
    early_stopping: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many evaluations without a better score.")
    ] = None,
    evaluate_every: Evaluate = None,
    held_out: Annotated[float, typer.Option(help="Share of the data held out for evaluation.")] = 0.05,
    separator: shared.Separator = None,
    document: shared.Document = "file",
    prompt: Annotated[list[str] | None, typer.Option(help="Generate from this at each evaluation; repeatable.")] = None,
    device: shared.Device = "auto",
    threads: shared.Threads = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")] = False,
    seed: Annotated[int, typer.Option(help="Of data order, dropout and fresh weights.")] = 0,
    tensorboard: Board = False,
    form: Annotated[
        Literal["safetensors", "tensorflow"],
        typer.Option(help="tensorflow: also save the best in the original's format."),
    ] = "safetensors",
) -> None:
    """Declare the options of both commands."""


@with_options(_training)
def finetune(
    context: typer.Context,
    *,
    model: Annotated[Path | None, typer.Option(help="The checkpoint to train.", show_default=False)] = None,
    config: shared.Config = None,
    tokenizer: shared.Tokenizer = None,
    lora: shared.Lora = None,
    restore_slots: Annotated[
        bool, typer.Option("--restore-slots", help="Start from AdaFactor's moments in the checkpoint.")
    ] = False,
    **options: Any,
) -> None:
    """Train a checkpoint on one's own text.

    [bold]hanmo finetune --model gpt2/model.ckpt-100000 --data novel.txt --out tuned[/bold]

    Trains all weights; 1.4 billion of them fit on an 8 GB card. Ctrl-C saves; --resume goes on.
    """
    given = _options(context)
    if given["model"] is None:
        raise typer.BadParameter("give --model, the checkpoint to begin from")
    from hanmo.finetune import finetune as tune

    _run(given, lambda **known: tune(Path(given["model"]), config=_path(given["config"]), **known))


@with_options(_training, batch=8, schedule="cosine")
def pretrain(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None, typer.Option(help="A hanmo.json, or a config.json of any family.", show_default=False)
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The vocabulary: file or folder.", show_default=False)] = None,
    **options: Any,
) -> None:
    """Train a new model of any family from scratch.

    [bold]hanmo pretrain --config config.json --family gpt2_ml --tokenizer vocab.txt --data corpus --out run[/bold]
    """
    given = _options(context)
    for name in ("config", "tokenizer"):
        if given[name] is None:
            raise typer.BadParameter(f"give --{name}; a fresh model needs both --config and --tokenizer")
    from hanmo.finetune import pretrain as tune

    _run(given, lambda **known: tune(Path(given["config"]), **known))


def _options(context: typer.Context) -> dict[str, Any]:
    """Return the options as plain values; a resumed run keeps its own where the command line gives no other."""
    given = {name: plain(value) for name, value in context.params.items()}
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
                    given[name] = plain(option.process_value(context, before[name]))
    elif any(out.glob("last-*")):
        raise ConfigError(f"{out} holds a run; go on with it by --resume, or give another --out")
    if not given["data"]:
        raise typer.BadParameter("give --data: text, packed files, or pairs")
    return given | {"command": command}


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

    from hanmo.finetune import Run
    from hanmo.training import distributed
    from hanmo.training.args import TrainArgs
    from hanmo.training.checkpoints import locked
    from hanmo.training.memory import parse_size

    set_torch_threads(given["threads"])
    if given["device"] == "auto":
        given["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    names = {field.name for field in fields(TrainArgs)} - {"device", "memory"}
    args = TrainArgs(
        **{name: value for name, value in given.items() if name in names and value is not None},
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
            args=args,
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
