"""`hanmo bench`: how fast a model generates, and what quantization costs. Knows options, tables and the bar."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from hanmo.cli import options as shared
from hanmo.cli.screen import aligned, bar, echo, echo_json, printable, say

Tables = Iterator[tuple[str, Sequence[Sequence[str]], Collection[int]]]  # title, rows, columns aligned on the right

_WEIGHTS = Option(help="Type of the weights in memory.", show_default="int8, or bfloat16 on a GPU")
_QUALITY = Option(help="A text (.txt, .jsonl …): measure its bits per character in every type.")


def bench(
    model: shared.Model = None,
    weights: Annotated[shared.WeightsKind | None, _WEIGHTS] = None,
    device: Annotated[str, Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    threads: shared.Threads = None,
    mask: shared.Mask = None,
    quick: Annotated[bool, Option("--quick", help="Measure one round instead of three.")] = False,
    picture: Annotated[Path | None, Option(help="Plot the time per token by length: a .png or .svg.")] = None,
    quality: Annotated[Path | None, _QUALITY] = None,
    documents: Annotated[int | None, Option(min=1, help="With --quality: only the first so many.")] = None,
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
    if as_json:
        echo_json(result)
    else:
        _print(result, quality=quality is not None)
    if picture is not None:
        draw(result, picture)
        say(f"drew {picture}")


def _print(result: dict[str, Any], *, quality: bool) -> None:
    model = result["model"]
    echo(f"{model['path']}: {model['family']}, {model['parameters']:,} parameters")
    if not quality:
        machine = result["machine"]
        memory, load, versions = machine["memory_bytes"], machine["load"], machine["versions"]
        parts = [machine["processor"], f"{machine['cores']} cores", memory and f"{memory / 2**30:.1f} GiB"]
        parts += [machine["gpu"], *(f"{name} {version}" for name, version in versions.items() if version)]
        parts += [None if load is None else f"load {load:.1f} before", machine["date"][:10]]
        echo(", ".join(filter(None, parts)))
    for title, rows, right in _quality(result) if quality else _speed(result):
        typer.echo("\n" + typer.style(printable(title), bold=True))
        echo(aligned(rows, right=right))


def _speed(result: dict[str, Any]) -> Tables:
    machine, model, start, read = (result[name] for name in ("machine", "model", "start", "bandwidth"))
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    ratio, converted = start["anonymous_per_weights"], start["conversion_seconds"]
    times = "" if ratio is None else f" ({ratio:.2f} × the weights)"
    rows = {
        "weights": f"{model['weights']}, {_size(model['weights_bytes'])} ({model['to_float32']:.2f} of float32)",
        "converting them, once": "cached" if converted is None else f"{converted:.2f} s",
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
    if result["writing"] is not None:
        rows["writing"] = f"{result['writing']['characters_per_second']:.1f} characters/s"
    yield f"Start, memory, writing ({machine['device']}, {threads})", [*rows.items()], ()
    lengths, batches = result["lengths"], result["batches"]
    of = "source tokens" if model["answers"] else "tokens before"
    table: list[Sequence[str]] = [(of, "first token, ms", "prompt tokens/s", "ms a token", "tokens/s")]
    for row in lengths["rows"]:
        numbers = row["first_token_seconds"] * 1000, row["prompt_tokens_per_second"], row["token_seconds"] * 1000
        table.append((f"{row['tokens']:,}", *map(_number, (*numbers, row["tokens_per_second"]))))
    title = f"By length, one row (longest to shortest: {lengths['longest_to_shortest']:.2f} ×)"
    yield title, table, range(5)
    table = [("rows", "ms a step", "tokens/s", "× one row")]
    for row in batches["rows"]:
        numbers = row["step_seconds"] * 1000, row["tokens_per_second"], row["times_one"]
        table.append((str(row["rows"]), *map(_number, numbers)))
    yield f"By rows at once, {batches['tokens']:,} tokens before", table, range(4)


def _quality(result: dict[str, Any]) -> Tables:
    counts = f"{result['documents']:,} documents, {result['characters']:,} characters, {result['unknown']:,} unknown"
    table = [("weights", "bits per character", "× float32")]
    for row in result["rows"]:
        table.append((row["weights"], f"{row['bits_per_character']:.4f}", f"{row['to_float32']:.4f}"))
    yield f"{result['text']}: {counts}", table, (1, 2)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _size(nbytes: float | None) -> str:
    if nbytes is None:
        return "unknown on this system"
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"
