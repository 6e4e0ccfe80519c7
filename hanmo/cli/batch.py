"""`hanmo write --file`: rows in, results out; a bar while it goes, one line at its end. `hanmo.batch` does the work."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hanmo.cli.chinese import translate
from hanmo.cli.screen import say
from hanmo.errors import MemoryPlanError

if TYPE_CHECKING:
    from hanmo.batch.files import Run
    from hanmo.batch.work import Line
    from hanmo.pipeline import Pipeline

__all__ = ["write_file"]


def write_file(
    file: Path,
    out: Path,
    *,
    model: Path,
    open_model: Callable[[], "Pipeline"],
    options: Mapping[str, Any],
    how: Mapping[str, Any],
    seed: int | None,
    n: int,
    beams: int | None,
    batch: int | None,
    ray: bool,
) -> None:
    """Write for every row of a file that is not done yet.

    open_model: loads the model.   options: what it loads and how, for the record.   how: as in `Pipeline.write`.
    """
    from hanmo.batch.cluster import write_on_cluster
    from hanmo.batch.files import Run
    from hanmo.batch.rows import read_rows
    from hanmo.batch.work import BatchWriter, window_rows
    from hanmo.generate.rules import check_count
    from hanmo.inference.store import identity
    from hanmo.pipeline import check_search

    batch = 8 if batch is None else batch
    check_count("n", n)
    check_count("batch", batch)
    check_search(beams, n, seed, how)
    settings = {"model": str(model.resolve()), "files": identity(model), **options, "n": n, "beams": beams, **how}
    with Run(file, out, settings=settings, seed=seed) as run:
        if run.finished:
            say(f"nothing left to do: {_told(run)}")
            _check(run)
            return
        if run.rows:
            say(f"going on behind row {run.number}: {_told(run)}")
        drawing: dict[str, Any] = {"seed": run.seed, "n": n, "beams": beams, "batch": batch, "how": how}
        start, number = run.window(window_rows(batch=batch, n=n, beams=beams))
        if ray:
            todo: dict[str, int] = {"start": start, "number": number, "done": run.number}
            results = write_on_cluster(file, open_model, drawing, gpus=_gpus(options), **todo)
        else:
            rows = read_rows(file, start=start, number=number)
            results = BatchWriter(open_model(), **drawing).write(rows, done=run.number)
        _follow(run, results, batch)
        say(f"finished: {_told(run)}")
        _check(run)


def _follow(run: "Run", results: Iterable[Sequence["Line"]], batch: int) -> None:
    """Append results as they come, and say behind which row they ended if they could not go on."""
    with _bar(run) as show:
        try:
            for lines in results:
                run.append(lines)
                show(sum(line.chars for line in lines))
        except (KeyboardInterrupt, SystemExit):
            say(f"stopped behind row {run.number}; the same command goes on from there")
            raise
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                raise
            raise MemoryPlanError(
                f"{batch} texts at once do not fit into memory; the same command with a --batch smaller than "
                f"{batch} goes on behind row {run.number}"
            ) from None


def _check(run: "Run") -> None:
    """End with exit code 1 where no row at all was written for."""
    if run.bad == run.rows:
        raise typer.Exit(1)


def _gpus(options: Mapping[str, Any]) -> bool | None:
    """Tell whether workers are for GPUs; None leaves it to what the cluster has."""
    if options["device"] != "auto":
        return str(options["device"]).startswith("cuda")
    return False if options["weights"] in ("int8", "int4") else None


def _told(run: "Run") -> str:
    done = f"{run.rows - run.bad:,} rows are in {run.out}"
    return f"{done}, {run.bad:,} could not be written for and are in {run.errors}" if run.bad else done


@contextmanager
def _bar(run: "Run") -> Iterator[Callable[[int], None]]:
    """Show a bar over the bytes of the prompts; gives a function to call with the characters that came."""
    if not sys.stderr.isatty():
        yield lambda chars: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    begun, total = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bar:
        task = bar.add_task(translate("writing"), total=run.size, completed=run.start)

        def show(chars: int) -> None:
            nonlocal total
            total += chars
            speed = total / max(time.monotonic() - begun, 1e-3)
            told = f"{run.rows:,} rows, {run.bad:,} bad, {speed:,.0f} characters/s"
            bar.update(task, completed=run.start, description=translate(told))

        yield show
