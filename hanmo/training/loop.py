"""The training loop, resumable bit for bit. Data, loss, evaluation and samples are plain functions and iterators.

Knows batches, a loss and when to evaluate, save and stop; step.py makes the step. Knows no text and no command line.

    batch ─► step ─┬─ every `evaluate_every`: evaluate, save the best; stop after too many without a better one
                   └─ every `save_every`, at the end and at SIGTERM: save the last
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from hanmo.errors import CheckpointError, ConfigError, TrainingError
from hanmo.training import distributed
from hanmo.training.args import TrainArgs
from hanmo.training.checkpoints import Checkpoints, Place, guarded, locked, newest, recover
from hanmo.training.data.epochs import Batches, Repeated
from hanmo.training.data.stream import ahead, count_read
from hanmo.training.log import Log
from hanmo.training.loss import next_token_loss
from hanmo.training.memory import peak_memory, reset_peak
from hanmo.training.score import score_of
from hanmo.training.step import Loss, Updates

_DIVERGED = 10  # skipped updates in a row, after which the run ends
_SETTLE, _MEASURE = 10, 40  # first steps of a process, which compile and warm up; steps that its speed is measured on


@dataclass
class Outcome:
    """How a run ended: best score, folder of the best weights, whether a signal stopped it.

    peak: the most bytes that the process held while it trained, without evaluations.
    """

    steps: int
    seconds: float
    best: float | None
    folder: Path
    stopped: bool
    peak: int


def fit(
    model: nn.Module,
    data: Batches | list[Any],
    *,
    out: str | Path,
    settings: TrainArgs,
    loss: Loss = next_token_loss,
    optimizer: Callable[[Any], Optimizer] | None = None,
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    sample: Callable[[Any], str] | None = None,
    watch: Callable[[Mapping[str, Any]], object] | None = None,
    beside: Iterable[Path] = (),
    save: Callable[[Any, Path], object] | None = None,
    resume: bool = False,
    same: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train a module on its device (CPU or GPU) and keep its last and best weights under `out`.

    data: batches by epoch and step (see epochs.py), or a list of batches, repeated.
    loss: (model, batch) → scalar mean over the ids counted by `hanmo.training.data.stream.count_predicted`.
    optimizer: model → its optimizer.
    evaluate: model → record, called before, every `evaluate_every` steps and after; see `score_of` for its score.
    sample: model → text, called at each evaluation and written to OUT/samples.txt.
    watch: called with each record of OUT/log.jsonl.   beside: files to copy into each checkpoint: vocab.txt.
    save: (model, folder) → writes the best weights into a folder, heads included, instead of the default format.
    resume: continue from the newest checkpoint under `out`, with the same losses; without one, start.
    same: what a resumed run has to have again, by its name for people: {"training data": a digest}.
    Seeds torch's generators. SIGTERM and SIGINT save and end the run after the current step.
    Raises ConfigError if `out` holds a model, CheckpointError if it holds a run and resume is False, or another run, or
    the disk is full, DataError while another process trains there, TrainingError when ten updates are not finite.
    """
    out, settings = Path(out), settings.for_loop()
    if settings.steps is None and settings.minutes is None:
        raise ConfigError("steps is None, minutes is None; give one of them")
    with locked(out):
        last = newest(out, "last")
        if last is not None and not resume:
            raise CheckpointError(f"{out} holds a run up to {last.name}; resume it, or give another folder")
        recover(out)
        last = distributed.agree(newest(out, "last"))
        distributed.share(model)
        updates = Updates(model, settings, loss, optimizer)
        run = _Run(out, updates, Checkpoints(out, updates, list(beside), save, same), evaluate, sample, watch)
        torch.manual_seed(settings.seed + distributed.rank())
        if last is not None:
            run.restore(last)
        shown = (out / "log.jsonl", console) if distributed.is_main() else (None, None)
        log = Log(*shown, after=None if last is None else run.at.step, evaluated=run.at.measured)
        try:
            with guarded(out), log as run.log, _signals() as run.signals:
                run.train(Repeated(data) if isinstance(data, list) else data)
                if not run.stopped():
                    run.finish()
        except BaseException:
            run.checkpoints.forget_untrained()
            raise
        folder = newest(out, "best") or newest(out, "last")
        assert folder is not None
        return Outcome(run.at.step, run.at.seconds, run.at.best, folder, bool(run.signals), run.peak)


class _Run:
    """The state of one run; `fit` shows the order of events."""

    log: Log
    signals: list[int]

    def __init__(
        self,
        out: Path,
        updates: Updates,
        checkpoints: Checkpoints,
        evaluate: Callable[[Any], Mapping[str, Any]] | None,
        sample: Callable[[Any], str] | None,
        watch: Callable[[Mapping[str, Any]], object] | None,
    ) -> None:
        self.updates, self.settings, self.checkpoints = updates, updates.args, checkpoints
        self.evaluate, self.sample, self.watch = evaluate, sample, watch
        self.samples = out / "samples.txt"
        self.at = Place(total=self.settings.steps)
        self.saved: int | None = None  # step of the last checkpoint
        self.skipped = 0  # updates skipped in a row
        self.evaluating = self.saving = 0.0  # seconds that each takes
        self.pace = (0, 0.0)  # steps of this process after the first _SETTLE, and their seconds
        self.shown, self.worked = 0, 0.0  # tokens at the last record, and seconds of steps since
        self.peak = 0  # bytes, without evaluations

    def train(self, data: Batches) -> None:
        """Run to the end or until a signal; save."""
        at, settings = self.at, self.settings
        began = time.perf_counter() - at.seconds
        if at.step == 0 and at.measured < 0:
            self.measure()
            at.seconds = time.perf_counter() - began
        self.updates.model.train()
        self.shown, first = at.tokens, at.step
        with ahead(data, epoch=at.epoch, step=at.batch, device=self.updates.device) as batches:
            while not self.ended() and not self.stopped():
                start = time.perf_counter()
                at.epoch, number, batch = next(batches)
                norm = self.updates.make(batch, at.step, at.total)
                self.check(norm)
                at.step, at.batch = at.step + 1, number + 1
                at.tokens += count_read(batch)
                now = time.perf_counter()
                at.seconds = now - began
                self.worked += now - start
                if at.step - first > _SETTLE:
                    self.pace = self.pace[0] + 1, self.pace[1] + now - start
                if settings.minutes is not None:
                    self.set_total(settings.minutes * 60)
                if at.step % settings.log_every == 0:
                    self.record(norm)
                if at.step % settings.evaluate_every == 0 and at.step != at.total:
                    self.measure()
                if at.step % settings.save_every == 0 and at.step != at.total:
                    self.save()
                at.seconds = time.perf_counter() - began
        self.save()

    def ended(self) -> bool:
        """Whether all steps are done, or early stopping applies."""
        patience = self.settings.early_stopping
        if patience is not None and self.at.worse >= patience:
            self.log.say(f"step {self.at.step}: no better in {patience} evaluations, so the run ends here")
            return True
        return self.at.total is not None and self.at.step >= self.at.total

    def stopped(self) -> bool:
        """Whether any process received a signal."""
        if distributed.world() == 1:
            return bool(self.signals)
        return bool(distributed.sum_over_processes(torch.tensor(len(self.signals), device=self.updates.device)))

    def check(self, norm: float) -> None:
        """Count and report an update whose gradient is not finite. Raises TrainingError at the tenth in a row."""
        if math.isfinite(norm):
            self.skipped = 0
            return
        self.at.skipped += 1
        self.skipped += 1
        what = "what was not finite" if self.settings.in_backward else "the batch"
        self.log.say(f"step {self.at.step}: the gradient's norm is {norm}; {what} is left out")
        if self.skipped == _DIVERGED:
            raise TrainingError(
                f"step {self.at.step}: the gradients of {_DIVERGED} updates in a row are inf or NaN, so the model "
                "learns no more; begin again in another folder with a learning rate below "
                f"{max(self.updates.rates):g}"
            )

    def step_seconds(self) -> float:
        """Return the seconds of a step, with its share of evaluations and saves."""
        steps, seconds = self.pace
        return seconds / steps + self.evaluating / self.settings.evaluate_every + self.saving / self.settings.save_every

    def set_total(self, limit: float) -> None:
        """Set the number of steps so that the run ends after `limit` seconds; adjust it if the speed changes."""
        at = self.at
        if self.pace[0] < _MEASURE or (at.total is not None and at.step % self.settings.log_every):
            return
        each = self.step_seconds()
        left = max(0.0, limit - at.seconds - self.evaluating - self.saving)
        total = distributed.agree(at.step + int(left / each))
        if at.total is None or abs(total - at.total) > 0.01 * at.total:
            at.total = max(total, at.step)
            self.log.say(f"step {at.step}: {each:.4f} s each with all pauses, so {at.total} steps in all")

    def record(self, norm: float) -> None:
        """Write the mean loss and the speed since the last record."""
        at, updates = self.at, self.updates
        loss = float(updates.sum) / updates.count if updates.count else math.nan
        rate, speed = updates.optimizer.param_groups[0]["lr"], (at.tokens - self.shown) / self.worked
        self.tell(
            {
                "step": at.step, "total": at.total, "loss": loss, "norm": norm, "lr": rate, "epoch": at.epoch,
                "tokens": at.tokens, "seconds": at.seconds, "tokens_per_second": speed, "skipped": at.skipped,
            }
        )  # fmt: skip
        line = f"step {at.step}/{at.total or '?'}  loss {loss:.4f}  norm {norm:.2f}  lr {rate:.2e}"
        line += f"  {speed:,.0f} tokens/s  {at.seconds:.0f} s"
        if self.pace[0] and at.total not in (None, at.step):
            line += f"  {timedelta(seconds=round((at.total - at.step) * self.step_seconds()))} left"
        self.log.progress(line, step=at.step, total=at.total)
        updates.sum.zero_()
        updates.count, self.shown, self.worked = 0, at.tokens, 0.0

    def tell(self, record: dict[str, Any]) -> None:
        """Write a record and pass it to `watch`."""
        self.log.write(record)
        if self.watch is not None and distributed.is_main():
            self.watch(record)

    def measure(self, *, averaged: bool = False) -> None:
        """Evaluate and write samples; save the weights if they are the best so far."""
        at, start, model = self.at, time.perf_counter(), self.updates.model
        at.measured = at.step
        self.peak = max(self.peak, peak_memory(self.updates.device)) if at.step else 0
        words = " (averaged)" if averaged else ""
        if self.evaluate is not None:
            found = distributed.agree(dict(self.evaluate(model)))
            distributed.settle(model)
            self.tell({"step": at.step, "evaluation": found, "averaged": averaged})
            name, higher = score_of(found)
            self.log.say(f"step {at.step}: {found[name]:.4f} {name.replace('_', ' ')}{words}")
            score, sign, better = found[name], 1 if higher else -1, True
            if at.step:  # weights that are not trained yet end nothing, and equal ones that are replace them
                better = at.trained is None or sign * score > sign * at.trained
                at.trained, at.worse = (score, 0) if better else (at.trained, at.worse + 1)
            if better and (at.best is None or sign * score >= sign * at.best):
                at.best = score
                self.checkpoints.save_best(at.step)
        if self.sample is not None:
            text = self.sample(model)
            if distributed.is_main():
                with self.samples.open("a", encoding="utf-8") as file:
                    file.write(f"## step {at.step}{words}\n\n{text}\n\n")
        distributed.settle(model)
        self.evaluating = time.perf_counter() - start
        reset_peak(self.updates.device)

    def finish(self) -> None:
        """Evaluate the last weights, then their moving average; without an evaluation the last are the best."""
        average = self.updates.average
        if self.at.measured != self.at.step:
            self.measure()
        if average is not None and self.at.step >= self.settings.average_every:
            with average.applied():
                self.measure(averaged=True)
        if self.evaluate is None:
            self.checkpoints.save_best(self.at.step)

    def save(self) -> None:
        """Save everything that resuming needs in a new folder; older ones are deleted."""
        if self.saved == self.at.step:
            return
        self.peak = max(self.peak, peak_memory(self.updates.device))
        start = time.perf_counter()
        self.at.samples = self.samples.stat().st_size if self.samples.is_file() else 0
        self.checkpoints.save_last(self.at.step, asdict(self.at))
        self.saved = self.at.step
        self.saving = time.perf_counter() - start

    def restore(self, folder: Path) -> None:
        """Restore what `save` saved. Raises CheckpointError if the settings differ."""
        self.at = Place(**self.checkpoints.restore(folder))
        self.at.total = self.settings.steps or self.at.total
        self.saved = self.at.step
        if self.at.samples is not None and self.samples.is_file() and distributed.is_main():
            with self.samples.open("r+b") as file:  # samples after the checkpoint are written again
                file.truncate(self.at.samples)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list while the block runs; a second SIGINT interrupts as usual."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
