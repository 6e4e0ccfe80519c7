"""A task trained several times, by seeds or by folds: how far its score depends on chance.

OUT/seed-0 … or OUT/fold-1 … are runs of `fit`, OUT/scores.json has their scores, mean and spread. A run of a fold
chooses weights and thresholds on a share of its training rows, and its score is that of the fold, which it never saw.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import ConfigError
from hanmo.tasks.config import Score, TaskArgs, TaskConfig
from hanmo.tasks.finetune import Fitted, fit
from hanmo.tasks.pipeline import open_task
from hanmo.tasks.readers import Source, read_data
from hanmo.tasks.rows import Row
from hanmo.tasks.rows import folds as make_folds
from hanmo.tasks.table import task_class
from hanmo.training import distributed


@dataclass(frozen=True)
class Repeats:
    """The runs, in order, and statistics of their main score.

    chosen_on: rows that chose the weights of each.   measured_on: rows of the scores.
    """

    fits: Sequence[Fitted]
    chosen_on: str
    measured_on: str

    @property
    def values(self) -> list[float]:
        """The main score of each run."""
        return [each.score.value for each in self.fits]

    @property
    def mean(self) -> float:
        """Mean of the main score."""
        return fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation of the main score over runs (n - 1 in the denominator)."""
        return stdev(self.values) if len(self.fits) > 1 else 0.0

    @property
    def best(self) -> Fitted:
        """The run with the highest score."""
        return max(self.fits, key=lambda each: each.score.value)

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the last run, and the others were not started."""
        return self.fits[-1].stopped

    def to_dict(self) -> dict[str, Any]:
        """Return folders, scores, mean and spread as JSON values."""
        runs = [{"folder": str(each.folder), **each.score.scores} for each in self.fits]
        told = {"score": self.fits[0].score.name, "mean": self.mean, "spread": self.spread}
        return {**told, "chosen_on": self.chosen_on, "measured_on": self.measured_on, "runs": runs}


def repeat(
    model: str | Path,
    *,
    train: Source,
    out: str | Path,
    seeds: int | None = None,
    folds: int | None = None,
    config: TaskConfig,
    args: TaskArgs,
    format: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> Repeats:
    """Train a task with several seeds, or once for each fold of the training data.

    seeds: runs with the seeds args.seed, args.seed + 1 …, which draw fresh weights, dropout, the order of the rows and,
    without dev data, which of them are held out.   folds: parts of the training data, each of which measures one run;
    the weights are chosen on a share (`args.held_out`) of the other parts.
    The rest is as for `fit`, and resume continues the run that was interrupted.
    Raises ConfigError unless one of seeds and folds is given, and for dev data with folds, and what `fit` raises.
    """
    if (seeds is None) == (folds is None):
        raise ConfigError(f"seeds is {seeds}, folds is {folds}; give one of them")
    if folds is not None and options.get("dev") is not None:
        raise ConfigError("runs by folds choose weights on a share of their training rows; leave dev out")
    out, rows = Path(out), read_data(train, format=format)
    runs: list[tuple[str, dict[str, Any], list[Row]]] = []
    if seeds is not None:
        for seed in range(args.seed, args.seed + seeds):
            runs.append((f"seed-{seed}", {"train": rows, "args": replace(args, seed=seed)}, []))
    else:
        kind = task_class(config.kind)
        config = kind.settle(config, rows)
        parts = make_folds(rows, folds or 0, key=kind.texts, seed=args.seed)
        for number, (left, fold) in enumerate(parts, 1):
            runs.append((f"fold-{number}", {"train": left, "args": args}, fold))
    fits: list[Fitted] = []
    say = partial(console.print, highlight=False) if console is not None and distributed.is_main() else str
    for name, given, fold in runs:
        say(f"run {len(fits) + 1} of {len(runs)}: {name}")
        fitted = fit(model, out=out / name, config=config, format=format, console=console, **options | given)
        if fold and not fitted.stopped:
            scores = open_task(fitted.folder, device=options.get("device", "cpu")).evaluate(fold, batch=args.batch)
            score = Score(fitted.score.name, scores[fitted.score.name], name, scores)
            say(f"{name}: {score.name} {score.value:.4f} on its {len(fold):,} rows")
            fitted = replace(fitted, score=score)
        fits.append(fitted)
        if fitted.stopped:
            break
    chosen_on = f"{args.held_out:.0%} of a run's training rows" if options.get("dev") is None else "the dev data"
    found = Repeats(fits, chosen_on, chosen_on if folds is None else "a run's fold")
    if distributed.is_main() and not found.stopped:
        with atomic_path(out / "scores.json") as made:
            made.write_text(json.dumps(found.to_dict(), ensure_ascii=False, indent=1) + "\n", "utf-8")
    return found
