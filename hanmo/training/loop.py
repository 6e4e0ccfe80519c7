"""The training loop: batches in, better weights out, resumable to the bit.

Knows batches, a loss and when to evaluate, save and stop; how a step is made stands in step.py. Knows no text and no
command line. Data, loss, evaluation and samples are plain functions and iterators that others may replace.

    batch ─► step ─┬─ every `evaluate_every`: evaluate, keep the best; too long without a better one: stop
                   └─ every `save_every`, at the end and at SIGTERM: keep the last
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
from torch.optim import Optimizer

from hanmo.errors import CheckpointError, TrainingError
from hanmo.model import Model
from hanmo.training import distributed
from hanmo.training.args import Settings
from hanmo.training.checkpoints import Checkpoints, Place, guarded, locked, newest, recover
from hanmo.training.data.stream import Batches, Repeated, ahead, read
from hanmo.training.device import peak_memory, reset_peak
from hanmo.training.log import Log
from hanmo.training.loss import next_token_loss
from hanmo.training.step import Loss, Updates

__all__ = ["SCORE", "Outcome", "fit"]

SCORE = "bits_per_character"  # of what `evaluate` gives, or else "loss"; the lower the better
_DIVERGED = 10  # updates left out in a row, after which the run ends
_SETTLE, _MEASURE = 10, 40  # first steps of a process, which compile and warm up, and those that tell its speed

Evaluate = Callable[[Model], Mapping[str, Any]]


@dataclass
class Outcome:
    """How a run ended: best score, folder of the best weights, whether a signal stopped it.

    peak: the most bytes that the process held while it trained, evaluations left out.
    """

    steps: int
    seconds: float
    best: float | None
    folder: Path
    stopped: bool
    peak: int


def fit(
    model: Model,
    data: Batches | list[Any],
    *,
    out: str | Path,
    settings: Settings,
    loss: Loss = next_token_loss,
    optimizer: Callable[[Model], Optimizer] | None = None,
    evaluate: Evaluate | None = None,
    sample: Callable[[Model], str] | None = None,
    watch: Callable[[Mapping[str, Any]], object] | None = None,
    beside: Iterable[Path] = (),
    resume: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train a model where it stands (CPU or GPU) and keep its last and best weights under `out`.

    data: batches by epoch and step (see stream.py), or a list of batches, read again and again.
    loss: (model, batch) → scalar mean over what `hanmo.training.data.stream.count_predicted` counts.
    optimizer: model → what updates it, instead of the one that the settings name.
    evaluate: model → record with "bits_per_character" or "loss", called before, every `evaluate_every` steps and after.
    sample: model → text, called with it and written to OUT/samples.txt.
    watch: called with each record of OUT/log.jsonl.   beside: files that belong into each checkpoint: vocab.txt.
    resume: go on from the newest checkpoint under `out`, to the same losses; without one, begin.
    torch's generators are seeded. SIGTERM and SIGINT end the run after the step in hand, saved. Where several processes
    joined (see distributed.py) each takes its rows of every batch and keeps its share of the weights.
    Raises CheckpointError if `out` holds a run and resume is False, or a run with other settings, or the disk is full,
    DataError while another process trains there, and TrainingError when ten updates in a row are not finite.
    """
    out = Path(out)
    with locked(out):
        last = newest(out, "last")
        if last is not None and not resume:
            raise CheckpointError(f"{out} holds a run up to {last.name}; resume it, or give another folder")
        if distributed.is_main():
            recover(out)
        last = distributed.agree(newest(out, "last"))
        distributed.share(model)
        run = _Run(out, settings, Updates(model, settings, loss, optimizer), evaluate, sample, watch, list(beside))
        torch.manual_seed(settings.seed + distributed.rank())
        if last is not None:
            run.restore(last)
        log = Log(
            out / "log.jsonl" if distributed.is_main() else None,
            after=run.at.step if last is not None else None,
            evaluated=run.at.measured,
            console=console if distributed.is_main() else None,
        )
        try:
            with guarded(out), log as run.log, _signals() as asked:
                run.train(Repeated(data) if isinstance(data, list) else data, asked)
                if not run.asked(asked):
                    run.finish()
        except BaseException:
            run.checkpoints.forget_untrained()
            raise
        folder = newest(out, "best") or newest(out, "last")
        assert folder is not None
        return Outcome(run.at.step, run.at.seconds, run.at.best, folder, bool(asked), run.peak)


class _Run:
    """One run's parts; made by `fit`, which shows what happens in which order."""

    log: Log

    def __init__(
        self,
        out: Path,
        settings: Settings,
        updates: Updates,
        evaluate: Evaluate | None,
        sample: Callable[[Model], str] | None,
        watch: Callable[[Mapping[str, Any]], object] | None,
        beside: list[Path],
    ) -> None:
        self.settings, self.updates, self.model = settings, updates, updates.model
        self.evaluate, self.sample, self.watch = evaluate, sample, watch
        self.samples = out / "samples.txt"
        self.checkpoints = Checkpoints(out, updates, beside)
        self.at = Place(total=settings.steps)
        self.saved: int | None = None  # step of the last checkpoint
        self.pauses = {"evaluate": 0.0, "save": 0.0}  # seconds that one of each takes
        self.left_out = 0  # updates in a row whose gradient was not finite
        self.pace = (0, 0.0)  # steps of this process after the first ones, and their seconds
        self.shown = (0, 0.0)  # tokens and seconds at the last record
        self.paused, self.peak = 0.0, 0  # seconds of evaluations and saves since then; bytes outside of them

    def train(self, data: Batches, asked: list[int]) -> None:
        """Run to the end, or until a signal was asked for; save."""
        at, settings = self.at, self.settings
        began = time.perf_counter() - at.seconds
        if at.step == 0 and at.measured < 0:
            self.measure()
            at.seconds = time.perf_counter() - began
        self.model.train()
        self.shown, self.paused = (at.tokens, at.seconds), 0.0
        first = at.step
        with ahead(data, epoch=at.epoch, step=at.batch, device=self.updates.device) as batches:
            while not self.ended() and not self.asked(asked):
                start = time.perf_counter()
                at.epoch, number, batch = next(batches)
                norm = self.updates.make(batch, at.step, at.total)
                self.skip(norm)
                at.step, at.batch = at.step + 1, number + 1
                at.tokens += read(batch)
                now = time.perf_counter()
                at.seconds = now - began
                if at.step - first > _SETTLE:
                    self.pace = self.pace[0] + 1, self.pace[1] + now - start
                if settings.minutes is not None:
                    self.plan(settings.minutes * 60)
                if at.step % settings.log_every == 0:
                    self.record(norm)
                if at.step % settings.evaluate_every == 0 and at.step != at.total:
                    self.measure()
                if at.step % settings.save_every == 0 and at.step != at.total:
                    self.save()
                at.seconds = time.perf_counter() - began
        self.save()

    def ended(self) -> bool:
        """Say whether all steps are made, or nothing has got better for too long."""
        patience = self.settings.early_stopping
        if patience is not None and self.at.worse >= patience:
            self.log.say(f"step {self.at.step}: no better in {patience} evaluations, so the run ends here")
            return True
        return self.at.total is not None and self.at.step >= self.at.total

    def asked(self, asked: list[int]) -> bool:
        """Say whether any process was asked to stop."""
        if distributed.world() == 1:
            return bool(asked)
        return bool(distributed.sum_over_processes(torch.tensor(len(asked), device=self.updates.device)))

    def skip(self, norm: float) -> None:
        """Count and tell an update whose gradient was not finite. Raises TrainingError at the tenth in a row."""
        if math.isfinite(norm):
            self.left_out = 0
            return
        self.at.skipped += 1
        self.left_out += 1
        what = "what was not finite" if self.settings.in_backward else "the batch"
        self.log.say(f"step {self.at.step}: the gradient's norm is {norm}; {what} is left out")
        if self.left_out == _DIVERGED:
            rate = max(self.updates.rates)
            raise TrainingError(
                f"step {self.at.step}: the gradients of {_DIVERGED} updates in a row are inf or NaN, so nothing more "
                f"is learned; begin again in another folder with a learning rate below {rate:g}"
            )

    def plan(self, limit: float) -> None:
        """Fix the number of steps so that the run ends after `limit` seconds; mend it where the speed has changed."""
        at, settings = self.at, self.settings
        if self.pace[0] < _MEASURE or (at.total is not None and at.step % settings.log_every):
            return
        each = self.step_seconds()
        left = max(0.0, limit - at.seconds - self.pauses["evaluate"] - self.pauses["save"])
        total = distributed.agree(at.step + int(left / each))
        if at.total is None or abs(total - at.total) > 0.01 * at.total:
            at.total = max(total, at.step)
            self.log.say(f"step {at.step}: {each:.4f} s each with all pauses, so {at.total} steps in all")

    def record(self, norm: float) -> None:
        """Write the mean loss since the last record, and the pace."""
        at, updates = self.at, self.updates
        loss = float(updates.sum) / updates.count if updates.count else math.nan
        tokens, seconds = at.tokens - self.shown[0], at.seconds - self.shown[1] - self.paused
        record = {
            "step": at.step, "total": at.total, "loss": loss, "norm": norm,
            "lr": updates.optimizer.param_groups[0]["lr"],
            "epoch": at.epoch, "tokens": at.tokens, "seconds": at.seconds,
            "tokens_per_second": tokens / seconds if seconds > 0 else 0.0, "skipped": at.skipped,
        }  # fmt: skip
        self.tell(record)
        pace = f"{record['tokens_per_second']:,.0f} tokens/s  {at.seconds:.0f} s{self.remaining()}"
        line = f"step {at.step}/{at.total or '?'}  loss {loss:.4f}  norm {norm:.2f}  lr {record['lr']:.2e}  {pace}"
        self.log.progress(line, step=at.step, total=at.total)
        updates.sum.zero_()
        updates.count, self.shown, self.paused = 0, (at.tokens, at.seconds), 0.0

    def remaining(self) -> str:
        """Say how long the rest of the run takes, evaluations and saves included; nothing until the speed is known."""
        if self.pace[0] == 0 or self.at.total in (None, self.at.step):
            return ""
        return f"  {timedelta(seconds=round((self.at.total - self.at.step) * self.step_seconds()))} left"

    def step_seconds(self) -> float:
        """Give the seconds of a step, with its share of evaluations and saves."""
        steps, seconds = self.pace
        pauses, settings = self.pauses, self.settings
        return seconds / steps + pauses["evaluate"] / settings.evaluate_every + pauses["save"] / settings.save_every

    def tell(self, record: dict[str, Any]) -> None:
        """Write a record, and show it to who watches."""
        self.log.write(record)
        if self.watch is not None and distributed.is_main():
            self.watch(record)

    def measure(self, *, averaged: bool = False) -> None:
        """Evaluate and write samples; keep the weights if they are the best so far."""
        at, start, device = self.at, time.perf_counter(), self.updates.device
        at.measured = at.step
        self.peak = max(self.peak, peak_memory(device)) if at.step else 0
        words = " (averaged)" if averaged else ""
        if self.evaluate is not None:
            found = distributed.agree(dict(self.evaluate(self.model)))
            distributed.settle(self.model)
            self.tell({"step": at.step, "evaluation": found, "averaged": averaged})
            name = SCORE if SCORE in found else "loss"
            self.log.say(f"step {at.step}: {found[name]:.4f} {name.replace('_', ' ')}{words}")
            at.worse += 1
            if at.best is None or found[name] < at.best:
                at.best, at.worse = found[name], 0
                self.checkpoints.save_best(at.step)
        if self.sample is not None:
            text = self.sample(self.model)
            if distributed.is_main():
                with self.samples.open("a", encoding="utf-8") as file:
                    file.write(f"## step {at.step}{words}\n\n{text}\n\n")
        distributed.settle(self.model)
        self.pauses["evaluate"] = time.perf_counter() - start
        self.paused += self.pauses["evaluate"]
        reset_peak(device)

    def finish(self) -> None:
        """Evaluate the end, and the moving average beside it; without an evaluation the end is the best."""
        average = self.updates.average
        if self.at.measured != self.at.step:
            self.measure()
        if average is not None and self.at.step >= self.settings.average_every:
            with average.applied():
                self.measure(averaged=True)
        if self.evaluate is None:
            self.checkpoints.save_best(self.at.step)

    def save(self) -> None:
        """Keep all that going on needs, in a new folder; older ones are deleted."""
        if self.saved == self.at.step:
            return
        self.peak = max(self.peak, peak_memory(self.updates.device))
        start = time.perf_counter()
        self.at.samples = self.samples.stat().st_size if self.samples.is_file() else 0
        self.checkpoints.save_last(self.at.step, asdict(self.at))
        self.saved = self.at.step
        self.pauses["save"] = time.perf_counter() - start
        self.paused += self.pauses["save"]

    def restore(self, folder: Path) -> None:
        """Go back to where `save` was. Raises CheckpointError if the settings are others."""
        self.at = Place(**self.checkpoints.restore(folder))
        self.at.total = self.settings.steps or self.at.total
        self.saved = self.at.step
        if self.at.samples is not None and self.samples.is_file() and distributed.is_main():
            with self.samples.open("r+b") as file:  # what was written after the checkpoint comes again
                file.truncate(self.at.samples)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list while the block runs; a second SIGINT interrupts as ever."""
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
