"""`hanmo task fit`, `predict`, `evaluate`, `explain` and `export`: options and files in, models and results out.

Knows options and how results are printed. `hanmo.tasks` does the work. Messages go to standard error.
"""

import json
import sys
from dataclasses import asdict, fields
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from hanmo.cli import options as shared
from hanmo.cli.options import keep_options, option, read_options, run_options, with_options
from hanmo.cli.screen import aligned, echo, echo_json, on_screen, say, translating_console
from hanmo.cli.task_input import read_inputs, read_rows, read_settings, read_wrapper
from hanmo.cli.train import TRAINING, train_args
from hanmo.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from hanmo.tasks.finetune import Fitted
    from hanmo.tasks.pipeline import TaskPipeline
    from hanmo.tasks.repeat import Repeats

_OF_THE_LOOP = (
    "accumulate", "steps", "minutes", "epochs", "lr", "warmup", "schedule", "average", "precision", "early_stopping",
    "device", "threads", "seed", "resume",
)  # fmt: skip
_FITTING = {
    "model": option(Path, "The encoder to train.", show_default=False),
    "train": option(Path, "Labelled data; docs/tasks.md lists the formats."),
    "dev": option(Path, "Data that chooses the best weights; default: a share of the data."),
    "out": option(Path, "Folder of the run: best weights, log, curves.", default=Parameter.empty, show_default=False),
    "config": option(
        Path,
        "Options from a TOML or JSON file; those on the command line go first.",
        callback=read_options,
        is_eager=True,
    ),
    "kind": option(str, "Kind of task: classify, tag, …"),
    "format": option(str, "Format of the data, if it is not recognized."),
    "form": option(str, "Variant of the kind, such as multi.", show_default="by the data"),
    "head": option(str, "Head of the kind, such as crf.", show_default="the kind's first"),
    "pooling": option(
        Literal["pooler", "mean", "first", "last"],
        "How token vectors become one.",
        show_default="pooler; last with --attention causal",
    ),
    "attention": option(
        Literal["full", "causal"], "Read by a model that writes, such as a GPT-2: what its tokens see of the others."
    ),
    "dropout": option(float, "Dropout of the network.", show_default="the checkpoint's"),
    "labels": option(list[str], "A label; repeatable.", "--label", show_default="those of the data"),
    "max_length": option(int, "Tokens of a window.", min=8, show_default="512, or the model's positions if fewer"),
    "stride": option(int, "Tokens from a window to the next.", min=1, show_default="three quarters of a window"),
    "options": option(list[str], "NAME=VALUE of the kind; repeatable.", "--set"),
    "wrap": option(list[str], "Training trick, such as fgm or r_drop:alpha=1; repeatable."),
    "seeds": option(int, "Train with so many seeds; report mean and spread.", min=2),
    "folds": option(int, "Train once for each of so many folds of the data.", min=2),
    "layer_decay": option(float, "Factor of the rate from each block to the one below.", default=1.0),
    "head_lr": option(float, "Factor of the head's learning rate.", default=1.0),
    "lora": (shared.Lora, None),
    "batch": (shared.Batch, 16),
    "held_out": option(float, "Share of the data held out for evaluation.", default=0.1),
    "optimizer": option(Literal["adamw", "muon", "adafactor-bert4keras"], "Default: adamw."),
    "evaluate_every": option(int, "Steps between evaluations; default: an epoch.", min=1),
    **{name: TRAINING[name] for name in _OF_THE_LOOP},
}
_PLOTS = "Folder for pictures: confusion matrix, reliability, precision and recall."
Folder = Annotated[Path, Option("--model", help="Folder of a trained task.", show_default=False)]
Weights = Annotated[
    Literal["float32", "bfloat16", "int8"] | None,
    Option(help="Compute the encoder by OpenVINO on the CPU, with these weights.", show_default="by torch"),
]
Windows = Annotated[int, Option("--batch", min=1, help="Windows computed at once.")]
Format = Annotated[str | None, Option(help="Format of the data, if it is not recognized.", show_default=False)]
FileFormat = Annotated[
    str | None, Option("--format", help="Format of the file, as for fit.", show_default="table for .tsv and .csv")
]


@with_options(_FITTING)
def fit(context: typer.Context, **options: Any) -> None:
    """Train a task on labelled data, and keep the weights with the best dev score.

    [bold]hanmo task fit --model bert --kind classify --train train.jsonl --dev dev.jsonl --out run[/bold]

    Shows what the data holds before it starts. Ctrl-C saves; --resume goes on.
    """
    given = run_options(context)
    for name in ("model", "kind", "train"):
        if given[name] is None:
            raise typer.BadParameter(f"give --{name}, here or in the file of --config")
    from hanmo.tasks.config import TaskArgs, TaskConfig
    from hanmo.tasks.finetune import fit as fit_once
    from hanmo.tasks.repeat import repeat
    from hanmo.training import distributed
    from hanmo.training.checkpoints import locked

    args, out = train_args(given, TaskArgs), Path(given["out"])
    names = {field.name for field in fields(TaskConfig)} & set(given) - {"options"}
    settings = {name: given[name] for name in names if given[name] is not None}
    config = TaskConfig(**settings, options=read_settings(given["options"] or ()))
    several = {name: given[name] for name in ("seeds", "folds") if given[name] is not None}
    with distributed.started(given["device"]) as device, locked(out):
        how = {name: given[name] for name in ("dev", "format", "layer_decay", "head_lr", "resume")}
        how["wrap"] = [read_wrapper(each) for each in given["wrap"] or ()]
        how |= {"device": device, "console": translating_console(quiet=not distributed.is_main())}
        if distributed.is_main() and not given["resume"]:
            keep_options(out, given)
        made: Fitted | Repeats = (repeat if several else fit_once)(
            given["model"], train=given["train"], out=out, config=config, args=args, **several, **how
        )
    if made.stopped:
        say(f"stopped and saved; go on with --out {out} --resume")
        raise typer.Exit(130)
    if distributed.is_main():
        _report(out, made)


def predict(
    texts: Annotated[list[str] | None, Argument(help="Texts; none, or -, reads lines from standard input.")] = None,
    *,
    model: Folder,
    file: Annotated[
        Path | None, Option(help="A file of texts or JSON objects, one a line.", show_default=False)
    ] = None,
    format: FileFormat = None,
    out: Annotated[
        Path | None, Option(dir_okay=False, help="The results, in place of standard output.", show_default=False)
    ] = None,
    batch: Windows = 32,
    weights: Weights = None,
    device: shared.Device = "auto",
    threads: shared.Threads = None,
) -> None:
    """Predict labels, spans or answers of texts; prints a JSON object for each.

    [bold]hanmo task predict --model run 今天天气不错[/bold]

    [bold]hanmo task predict --model run --file texts.txt --out results.jsonl[/bold]

    What begins with { is a JSON object with the keys of a data row; all else is a text.
    """
    if texts and file is not None:
        raise typer.BadParameter("give texts or --file, not both")
    if format is not None and file is None:
        raise typer.BadParameter("--format is of the rows of a file; give it with --file")
    pipeline = _open(model, device, threads, weights)
    from hanmo.checkpoint.staged import atomic_path

    if texts and texts != ["-"]:
        rows = list(read_rows((f"text {number}", text) for number, text in enumerate(texts, 1)))
    else:
        rows = read_inputs(file, format)
    if not rows:
        raise DataError(f"there is no text in {file or 'what was given'}; expected one on each line")
    results = pipeline.stream_results(rows, batch=batch)
    lines = (json.dumps({**row.data, **result}, ensure_ascii=False) for row, result in zip(rows, results, strict=True))
    if out is None:
        for line in lines:
            print(on_screen(line), flush=True)
        return
    with atomic_path(out) as made, made.open("w", encoding="utf-8") as written:
        for line in lines:
            written.write(line + "\n")
    say(f"results of {len(rows):,} rows are in {out}")


def evaluate(
    data: Annotated[Path, Argument(help="Labelled data, as for fit.")],
    *,
    model: Folder,
    format: Format = None,
    confusion: Annotated[
        Path | None, Option(dir_okay=False, help="Draw a confusion matrix as a PNG.", show_default=False)
    ] = None,
    plots: Annotated[Path | None, Option(file_okay=False, show_default=False, help=_PLOTS)] = None,
    batch: Windows = 32,
    weights: Weights = None,
    device: shared.Device = "auto",
    threads: shared.Threads = None,
    as_json: shared.Json = False,
) -> None:
    """Score a task on labelled data; prints the scores, and those of each label.

    [bold]hanmo task evaluate test.jsonl --model run --plots pictures[/bold]
    """
    pipeline = _open(model, device, threads, weights)
    from hanmo.tasks.plots import draw_confusion, draw_plots
    from hanmo.tasks.report import confused

    rows, results = pipeline.predict_labelled(data, batch=batch, format=format)
    pairs = confused(rows, results) if confusion is not None else None
    scores, counts = pipeline.task.measure(rows, results), pipeline.task.label_counts(rows, results)
    names = ("precision", "recall", "f1", "true", "predicted")
    labels = {label: {name: getattr(found, name) for name in names} for label, found in counts.items()}
    if as_json:
        echo_json({"rows": len(rows), "scores": scores, "labels": labels})
    else:
        echo(aligned([(name, f"{value:.4f}") for name, value in scores.items()] + [("rows", f"{len(rows):,}")]))
        if labels:
            table = [
                (*(f"{value:.4f}" if isinstance(value, float) else f"{value:,}" for value in each.values()), label)
                for label, each in labels.items()
            ]
            echo("\n" + aligned([(*names, "label"), *table], right=range(5)))
    if confusion is not None and pairs is not None:
        shown = draw_confusion(*pairs, confusion)
        say(f"confusion matrix: {confusion}, labels {', '.join(shown)}")
    if plots is not None:
        drawn = draw_plots(pipeline.task, rows, results, plots)
        for picture in drawn:
            say(f"picture: {picture}")
        if not drawn:
            say("no pictures: they show labels, spans and relations, which this task does not predict")


def explain(
    text: Annotated[str, Argument(help="The text, or a JSON object with the keys of a data row.")],
    *,
    model: Folder,
    label: Annotated[str | None, Option(help="The label to explain.", show_default="the most probable one")] = None,
    points: Annotated[int, Option(min=2, help="Steps of the integral; more are more exact.")] = 20,
    html: Annotated[
        Path | None, Option(dir_okay=False, help="Write the picture as a page for a browser.", show_default=False)
    ] = None,
    device: shared.Device = "auto",
    threads: shared.Threads = None,
    as_json: shared.Json = False,
) -> None:
    """Show which characters a label or the spans found rest on, by integrated gradients.

    [bold]hanmo task explain 这是一本很好看的书 --model run --html picture.html[/bold]

    Red speaks for the label, blue against it.
    """
    pipeline = _open(model, device, threads)
    from rich.console import Console

    from hanmo.checkpoint.staged import atomic_path
    from hanmo.tasks.explain import explain as attribute

    (row,) = read_rows([("the text", text)])
    found = attribute(pipeline, row.data, label=label, points=points)
    if html is not None:
        with atomic_path(html) as made:
            made.write_text(found.to_html(), "utf-8")
        say(f"picture: {html}")
    elif as_json:
        echo_json(asdict(found))
    elif sys.stdout.isatty():
        Console().print(found, soft_wrap=True)
    else:
        echo(f"{found.label}\t{found.probability:.4f}")
        for character, score in found.characters:
            echo(f"{character}\t{score:+.4f}")


def export(
    target: Annotated[Path, Argument(help="Folder to write.")],
    *,
    model: Folder,
    form: Annotated[
        Literal["huggingface", "onnx"], Option(help="huggingface: for transformers; onnx: for onnxruntime.")
    ] = "huggingface",
    drop_transitions: Annotated[
        bool,
        Option("--drop-transitions", help="Leave out the transitions of a CRF or MEMM, which transformers has not."),
    ] = False,
    overwrite: Annotated[bool, Option("--force", help="Replace a folder that is there.")] = False,
) -> None:
    """Write a task as a folder that transformers or onnxruntime loads; prints its path.

    [bold]hanmo task export exported --model run --form onnx[/bold]
    """
    pipeline = _open(model, "cpu", None)
    from hanmo.tasks.export import export as write

    saved = write(pipeline, target, form=form, drop_transitions=drop_transitions, overwrite=overwrite)
    for note in saved.notes:
        say(note)
    echo(str(saved.path))


def _open(model: Path, device: str, threads: int | None, weights: str | None = None) -> "TaskPipeline":
    import torch

    from hanmo.cores import set_torch_threads
    from hanmo.tasks.pipeline import open_task

    set_torch_threads(threads)
    if device == "auto":
        device = "cuda" if weights is None and torch.cuda.is_available() else "cpu"
    pipeline = open_task(model, device=device)
    return pipeline if weights is None else pipeline.use_openvino(weights=weights, threads=threads)


def _report(out: Path, made: "Fitted | Repeats") -> None:
    from hanmo.tasks.repeat import Repeats
    from hanmo.training.log import draw_curves

    runs, best = (made.fits, made.best) if isinstance(made, Repeats) else ([made], made)
    try:
        for each in runs:
            say(f"curves: {draw_curves(each.folder.parent, unit=each.score.name, loss='training loss')}")
    except MissingExtra as error:
        say(str(error))
    if isinstance(made, Repeats):
        values = ", ".join(f"{value:.4f}" for value in made.values)
        say(f"{best.score.name} of {len(runs)} runs: {made.mean:.4f} ± {made.spread:.4f} ({values})")
        if made.chosen_on == made.measured_on:
            say("each score is of the dev rows that chose the weights, so it is optimistic")
        else:
            say("the weights were chosen on a share of the training rows, not on the fold that the score is of")
    else:
        say(f"{best.score.name} on {best.score.on}: {best.score.value:.4f}, {best.steps:,} steps")
    folder = best.folder.parent / "best" if (best.folder.parent / "best").exists() else best.folder
    say(f"predict with: hanmo task predict --model {folder} TEXT")
