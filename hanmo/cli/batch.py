"""`hanmo write --file`: rows in, results out, a progress bar, one line at the end. `hanmo.batch` does the work."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hanmo.cli.options import plain
from hanmo.cli.screen import bar, say
from hanmo.errors import MemoryPlanError

if TYPE_CHECKING:
    from hanmo.batch.files import Run
    from hanmo.batch.work import Line
    from hanmo.pipeline import Pipeline


def write_file(
    file: Path,
    out: Path,
    *,
    model: Path,
    open_model: Callable[[], "Pipeline"],
    reading: Mapping[str, Any],
    drawing: Mapping[str, Any],
    ray: bool,
) -> None:
    """Continue every row of a file that is not done yet.

    reading: the options of `open_model`, which the run's record keeps.   drawing: as for `BatchWriter`, its seed None
    to take the run's.
    """
    from hanmo.batch.cluster import write_on_cluster
    from hanmo.batch.files import Run
    from hanmo.batch.rows import read_rows
    from hanmo.batch.work import BatchWriter, window_rows
    from hanmo.generate.rules import check_count
    from hanmo.inference.store import identity
    from hanmo.pipeline import check_search

    seed, n, beams, batch, how = (drawing[name] for name in ("seed", "n", "beams", "batch", "how"))
    check_count("n", n)
    check_count("batch", batch)
    check_search(beams, n, seed, how)
    files = {name: plain(value.resolve()) if isinstance(value, Path) else value for name, value in reading.items()}
    settings = {"model": str(model.resolve()), "files": identity(model), **files, "n": n, "beams": beams, **how}
    del settings["speculation"]  # no result depends on it
    with Run(file, out, settings=settings, seed=seed) as run:
        if run.finished:
            say(f"nothing left to do: {_summary(run)}")
        else:
            if run.rows:
                say(f"resuming after row {run.number}: {_summary(run)}")
            start, number = run.window(window_rows(batch=batch, n=n, beams=beams))
            options = {**drawing, "seed": run.seed}
            if ray:
                gpus = False if reading["weights"] in ("int8", "int4") else None  # None: what the cluster has
                gpus = gpus if reading["device"] == "auto" else reading["device"].startswith("cuda")
                place: dict[str, int] = {"start": start, "number": number, "done": run.number}
                results = write_on_cluster(file, open_model, options, gpus=gpus, **place)
            else:
                rows = read_rows(file, start=start, number=number)
                results = BatchWriter(open_model(), **options).write(rows, done=run.number)
            _follow(run, results, batch)
            say(f"finished: {_summary(run)}")
        if run.bad == run.rows:
            raise typer.Exit(1)


def _follow(run: "Run", results: Iterable[Sequence["Line"]], batch: int) -> None:
    """Append results as they come; if that ends early, say behind which row."""
    begun, chars = time.monotonic(), 0
    columns, estimate = ("TaskProgressColumn", "TimeRemainingColumn"), {"speed_estimate_period": 600}
    with bar("writing", *columns, completed=run.start, **estimate) as show:
        try:
            for lines in results:
                run.append(lines)
                chars += sum(line.chars for line in lines)
                speed = chars / max(time.monotonic() - begun, 1e-3)
                show(run.start, run.size, f"{run.rows:,} rows, {run.bad:,} bad, {speed:,.0f} characters/s")
        except (KeyboardInterrupt, SystemExit):
            say(f"stopped after row {run.number}; run the same command to continue")
            raise
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                raise
            raise MemoryPlanError(
                f"{batch} texts at once do not fit into memory; run the same command with a --batch smaller than "
                f"{batch} to continue after row {run.number}"
            ) from None


def _summary(run: "Run") -> str:
    done = f"{run.rows - run.bad:,} rows are in {run.out}"
    return f"{done}, {run.bad:,} failed and are in {run.errors}" if run.bad else done
