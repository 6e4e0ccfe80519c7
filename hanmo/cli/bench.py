"""`hanmo bench`: how fast a model generates, and what quantization costs. Knows options, tables and the bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli import options as shared
from hanmo.cli.screen import bar, echo, say

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["bench"]


def bench(
    model: shared.Model = None,
    weights: Annotated[
        shared.WeightsKind | None,
        typer.Option(help="Type of the weights in memory.", show_default="int8, or bfloat16 on a GPU"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    threads: shared.Threads = None,
    mask: shared.Mask = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure one round instead of three.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Plot the time per token by length: a .png or .svg.")] = None,
    quality: Annotated[
        Path | None, typer.Option(help="A text (.txt, .jsonl …): measure its bits per character in every type.")
    ] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="With --quality: only the first so many.")] = None,
    as_json: shared.Json = False,
) -> None:
    """Measure how fast a model generates on this machine, or with --quality how well it predicts a text.

    [bold]hanmo bench --model gpt2/model.ckpt-100000 --picture speed.png[/bold]

    [bold]hanmo bench --model gpt2/model.ckpt-100000 --quality held-out.jsonl --documents 20[/bold]
    """
    if quality is None and documents is not None:
        raise typer.BadParameter("--documents belongs to --quality")
    if quality is not None and (picture is not None or quick or weights is not None):
        raise typer.BadParameter("--quality measures every type of weights; leave --weights, --picture and --quick out")
    from hanmo.bench.subject import Subject
    from hanmo.pipeline import SMALL

    kind = weights or ("int8" if device == "cpu" else "bfloat16")
    subject = Subject(model or SMALL, weights=kind, device=device, threads=threads, mask=mask)
    # Redrawing while something is timed would take a share of the processor.
    with bar("looking", "TimeElapsedColumn", auto_refresh=False) as shown:

        def show(title: str, done: int, total: int) -> None:
            shown(done, total, title)

        if quality is not None:
            from hanmo.bench.quality import measure_quality

            result = measure_quality(subject, quality, documents=documents, show=show)
        else:
            from hanmo.bench.picture import check_picture, draw
            from hanmo.bench.speed import measure

            if picture is not None:
                check_picture(picture)
            result = measure(subject, quick=quick, show=show)
    tables = (_quality,) if quality is not None else (_speed, _lengths, _batches)
    _print(result, [table(result) for table in tables], as_json=as_json)
    if picture is not None:
        draw(result, picture)
        say(f"drew {picture}")


def _print(result: dict[str, Any], tables: list[Table], *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    model = result["model"]
    console.print(f"{model['path']}: {model['family']}, {model['parameters']:,} parameters")
    if "machine" in result:
        console.print(_machine(result["machine"]))
    for table in tables:
        console.print()
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    how: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD, "pad_edge": False}
    table = Table(title=title, show_header=any(columns), **how)
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "weights") else "right")
    return table


def _machine(machine: dict[str, Any]) -> str:
    memory, load = machine["memory_bytes"], machine["load"]
    parts = [machine["processor"], f"{machine['cores']} cores"]
    parts += [] if memory is None else [f"{memory / 2**30:.1f} GiB"]
    parts += [] if machine["gpu"] is None else [machine["gpu"]]
    parts += [f"{name} {version}" for name, version in machine["versions"].items() if version is not None]
    parts += [] if load is None else [f"load {load:.1f} before"]
    return ", ".join([*parts, machine["date"][:10]])


def _speed(result: dict[str, Any]) -> Table:
    model, start, read, writing = (result[name] for name in ("model", "start", "bandwidth", "writing"))
    ratio = start["anonymous_per_weights"]
    converted = start["conversion_seconds"]
    times = f" ({ratio:.2f} × the weights)" if ratio is not None else ""
    rows = {
        "weights": f"{model['weights']}, {_size(model['weights_bytes'])} ({model['to_float32']:.2f} of float32)",
        "converting them, once": "kept from before" if converted is None else f"{converted:.2f} s",
        "opening them": f"{start['open_seconds']:.2f} s",
        "fresh process to first token": f"{start['first_token_seconds']:.2f} s",
        "memory after it, anonymous": _size(start["anonymous_bytes"]) + times,
        "memory after it, resident": _size(start["resident_bytes"]),
        "memory, peak": _size(start["peak_bytes"]),
        "memory's read speed": f"{_size(read['bytes_per_second'])}/s",
        "weights read for a token": _size(read["weights_bytes_per_token"]),
        "share of the read speed": f"{read['share']:.1%}",
    }
    if start["gpu_peak_bytes"] is not None:
        rows["memory of the GPU, peak"] = _size(start["gpu_peak_bytes"])
    if writing is not None:
        rows["writing"] = f"{writing['characters_per_second']:.1f} characters/s"
    threads = result["machine"]["threads"]
    table = _table(
        f"Start, memory, writing ({result['machine']['device']}, {threads} thread{'s' * (threads > 1)})", "", ""
    )
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _lengths(result: dict[str, Any]) -> Table:
    of = "source tokens" if result["model"]["answers"] else "tokens before"
    title = f"By length, one row (longest to shortest: {result['lengths']['longest_to_shortest']:.2f} ×)"
    table = _table(title, of, "first token, ms", "prompt tokens/s", "ms a token", "tokens/s")
    for row in result["lengths"]["rows"]:
        numbers = (row["first_token_seconds"] * 1000, row["prompt_tokens_per_second"], row["token_seconds"] * 1000)
        table.add_row(f"{row['tokens']:,}", *map(_number, (*numbers, row["tokens_per_second"])))
    return table


def _batches(result: dict[str, Any]) -> Table:
    title = f"By rows at once, {result['batches']['tokens']:,} tokens before"
    table = _table(title, "rows", "ms a step", "tokens/s", "× one row")
    for row in result["batches"]["rows"]:
        numbers = (row["step_seconds"] * 1000, row["tokens_per_second"], row["times_one"])
        table.add_row(str(row["rows"]), *map(_number, numbers))
    return table


def _quality(result: dict[str, Any]) -> Table:
    counts = f"{result['documents']:,} documents, {result['characters']:,} characters, {result['unknown']:,} unknown"
    table = _table(f"{result['text']}: {counts}", "weights", "bits per character", "× float32")
    for row in result["rows"]:
        table.add_row(row["weights"], f"{row['bits_per_character']:.4f}", f"{row['to_float32']:.4f}")
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _size(nbytes: float | None) -> str:
    if nbytes is None:
        return "not told by this system"
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"
