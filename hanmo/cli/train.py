"""`hanmo finetune` and `hanmo pretrain`: options in, a trained model out. `hanmo.finetune` does the work.

Knows options. All messages go to standard error.
"""

from dataclasses import fields
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer

from hanmo.cli import options as shared
from hanmo.cli.options import keep_options, option, run_options, with_options
from hanmo.cli.screen import progress, say, translating_console
from hanmo.cores import set_torch_threads

if TYPE_CHECKING:
    from hanmo.training.args import TrainArgs

Args = TypeVar("Args", bound="TrainArgs")

TRAINING: dict[str, tuple[Any, Any]] = {
    "out": option(Path, "Folder of the run: checkpoints, log, curves.", default=Parameter.empty, show_default=False),
    "data": option(list[Path], "Text (txt, jsonl, csv, folders), packed files, or pairs."),
    "valid": option(list[Path], "Validation data; default: a share of the data."),
    "resume": option(bool, "Go on with the run in OUT, with its own options.", "--resume", default=False),
    "family": (shared.Family, None),
    "pre_tokenize": (shared.PreTokenize, None),
    "mask": (shared.Mask, None),
    "sequence": (shared.Sequence, None),
    "batch": (shared.Batch, 1),
    "accumulate": option(int, "Parts that a batch is computed in, to save memory.", default=1, min=1),
    "steps": option(int, "Number of updates.", min=1),
    "minutes": option(float, "Train for so long, evaluations included."),
    "epochs": option(float, "Passes over the data.", show_default="3"),
    "optimizer": option(
        Literal["adafactor-gpt2-ml", "adafactor-bert4keras", "adamw", "muon"],
        "Default: adamw; to finetune without --lora adafactor-gpt2-ml.",
    ),
    "lr": option(float, "Peak learning rate; default: the optimizer's."),
    "warmup": option(int, "Steps of warmup; default: a tenth.", min=0),
    "schedule": option(Literal["linear", "cosine", "constant"], "How the learning rate decays.", default="linear"),
    "clip": option(float, "Largest gradient norm; keeps all gradients in memory."),
    "average": option(float, "Momentum of a moving average of the weights; 0 is off.", default=0.0),
    "precision": option(
        Literal["float32", "mixed", "bfloat16"],
        "mixed computes in bfloat16; bfloat16 also has such weights. Default: what fits.",
    ),
    "recompute": option(bool, "Recompute activations. Default: if memory requires it."),
    "memory": (shared.Memory, None),
    "early_stopping": option(int, "Stop after so many evaluations without a better score.", min=1),
    "evaluate_every": option(int, "Steps between evaluations; default: a tenth of all.", min=1),
    "held_out": option(float, "Share of the data held out for evaluation.", default=0.05),
    "separator": (shared.Separator, None),
    "document": (shared.Document, "file"),
    "prompt": option(list[str], "Generate from this at each evaluation; repeatable."),
    "device": (shared.Device, "auto"),
    "threads": (shared.Threads, None),
    "compile": option(bool, "Compile the network with torch.compile.", "--compile", default=False),
    "seed": option(int, "Of data order, dropout and fresh weights.", default=0),
    "tensorboard": option(bool, "Log to OUT/tensorboard too.", "--tensorboard", default=False),
    "form": option(
        Literal["safetensors", "tensorflow"],
        "tensorflow: also save the best in the original's format.",
        default="safetensors",
    ),
}
_FINETUNING = {
    "model": option(Path, "The checkpoint to train.", show_default=False),
    "config": (shared.Config, None),
    "tokenizer": (shared.Tokenizer, None),
    "lora": (shared.Lora, None),
    "restore_slots": option(
        bool, "Start from AdaFactor's moments in the checkpoint.", "--restore-slots", default=False
    ),
}
_PRETRAINING = {
    "config": option(Path, "A hanmo.json, or a config.json of any family.", show_default=False),
    "tokenizer": option(Path, "The vocabulary: file or folder.", show_default=False),
}


@with_options(_FINETUNING | TRAINING)
def finetune(context: typer.Context, **options: Any) -> None:
    """Train a checkpoint on one's own text.

    [bold]hanmo finetune --model gpt2/model.ckpt-100000 --data novel.txt --out tuned[/bold]

    Trains all weights; 1.4 billion of them fit on an 8 GB card. Ctrl-C saves; --resume goes on.
    """
    given = run_options(context)
    if given["model"] is None:
        raise typer.BadParameter("give --model, the checkpoint to begin from")
    from hanmo.finetune import finetune as tune

    _run(given, partial(tune, Path(given["model"]), config=given["config"] and Path(given["config"])))


@with_options(_PRETRAINING | TRAINING, batch=8, schedule="cosine")
def pretrain(context: typer.Context, **options: Any) -> None:
    """Train a new model of any family from scratch.

    [bold]hanmo pretrain --config config.json --family gpt2_ml --tokenizer vocab.txt --data corpus --out run[/bold]
    """
    given = run_options(context)
    for name in _PRETRAINING:
        if given[name] is None:
            raise typer.BadParameter(f"give --{name}; a fresh model needs both --config and --tokenizer")
    from hanmo.finetune import pretrain as tune

    _run(given, partial(tune, Path(given["config"])))


def _run(given: dict[str, Any], tune: Any) -> None:
    """Do the run, in as many processes as torchrun started, and end as it was asked to."""
    if not given["data"]:
        raise typer.BadParameter("give --data: text, packed files, or pairs")
    from hanmo.finetune import Run
    from hanmo.training import distributed
    from hanmo.training.args import TrainArgs
    from hanmo.training.checkpoints import locked

    args = train_args(given, TrainArgs)
    out, data, valid = Path(given["out"]), map(Path, given["data"]), map(Path, given["valid"] or ())
    how = {"resume": given["resume"], "board": given["tensorboard"], "form": given["form"]}
    run = Run(out, [*data], [*valid], given["prompt"] or (), **how)
    with distributed.started(given["device"]) as device, locked(out), progress("packing") as shown:
        if distributed.is_main() and not run.resume:
            keep_options(out, given)
        outcome = tune(
            run=run,
            args=args,
            device=device,
            family=given["family"],
            mask=given["mask"],
            tokenizer=given["tokenizer"] and Path(given["tokenizer"]),
            console=translating_console(quiet=not distributed.is_main()),
            progress=shown,
        )
    if outcome.stopped:
        say(f"stopped after step {outcome.steps}, saved; go on with --out {out} --resume")
        raise typer.Exit(130)


def train_args(given: dict[str, Any], kind: type[Args]) -> Args:
    """Make the arguments of a training run of options; sets threads, and the device in place of "auto"."""
    import torch

    from hanmo.training.memory import parse_size

    set_torch_threads(given["threads"])
    if given["device"] == "auto":
        given["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    names = {field.name for field in fields(kind)} - {"device", "memory"}
    memory = given.get("memory")
    return kind(
        **{name: value for name, value in given.items() if name in names and value is not None},
        memory=memory and parse_size(memory),
    )
