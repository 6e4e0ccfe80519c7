"""The training loop: batches in, better weights out, resumable to the bit.

Knows a model, an optimizer, batches, a loss and when to evaluate, save and stop. Knows no text and no command line.
Data, loss, evaluation and samples are plain functions and iterators that others may replace.

    batch ─► loss ─► backward ─► clip ─► step ─┬─ every `evaluate_every`: evaluate, keep the best
                                               └─ every `save_every`, at the end and at SIGTERM: keep the last
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from hanmo.errors import CheckpointError
from hanmo.model import Model
from hanmo.train.averages import ExponentialMovingAverage
from hanmo.train.checkpoints import fill_from, newest, read_state, save_checkpoint
from hanmo.train.log import Log
from hanmo.train.loss import next_token_loss
from hanmo.train.settings import Settings, make_optimizer, multiplier
from hanmo.train.stream import Batches, ahead

__all__ = ["SCORE", "Outcome", "fit"]

SCORE = "bits_per_character"  # of what `evaluate` gives; the lower the better
_SETTLE, _MEASURE = 10, 40  # first steps of a process, which compile and warm up, and those that tell its speed


@dataclass
class Outcome:
    """How a run ended: steps, seconds, the best score, the folder of the best weights, whether it was stopped."""

    steps: int
    seconds: float
    best: float | None
    folder: Path
    stopped: bool


def fit(
    model: Model,
    data: Batches,
    *,
    out: Path,
    settings: Settings,
    loss: Callable[[Model, Tensor], Tensor] = next_token_loss,
    evaluate: Callable[[Model], Mapping[str, Any]] | None = None,
    sample: Callable[[Model], str] | None = None,
    beside: Iterable[Path] = (),
    resume: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train a model where it stands (CPU or GPU) and keep its last and best weights under `out`.

    evaluate: model → record with "bits_per_character", called before, every `evaluate_every` steps and after.
    sample: model → text, called with it and written to OUT/samples.txt.
    beside: files that belong into each checkpoint, such as vocab.txt.
    resume: go on from the newest checkpoint under `out`, to the same losses; without one, begin.
    torch's generators are seeded. SIGTERM and SIGINT end the run after the step in hand, saved.
    Raises CheckpointError if `out` holds a run and resume is False, or a run with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    last = newest(out, "last")
    if last is not None and not resume:
        raise CheckpointError(f"{out} holds a run up to {last.name}; resume it, or give another folder")
    run = _Run(model, out, settings, loss, evaluate, sample, list(beside))
    torch.manual_seed(settings.seed)
    if last is not None:
        run.restore(last)
    after = run.at.step if last is not None else None
    with Log(out / "log.jsonl", after=after, console=console) as run.log, _signals() as asked:
        run.train(data, asked)
        if not asked:
            run.finish()
    folder = newest(out, "best") or newest(out, "last")
    assert folder is not None
    return Outcome(run.at.step, run.at.seconds, run.at.best, folder, bool(asked))


@dataclass
class _Place:
    """Where a run is; all of it is in the checkpoint."""

    step: int = 0  # updates made
    epoch: int = 0  # of the next batch
    batch: int = 0  # of the next batch, in its epoch
    total: int | None = None  # updates of the whole run; None until the speed is known
    seconds: float = 0.0  # spent, over all processes
    tokens: int = 0  # read
    skipped: int = 0  # batches whose gradient was not finite
    best: float | None = None


class _Run:
    """One run's parts; made by `fit`, which shows what happens in which order."""

    log: Log

    def __init__(
        self,
        model: Model,
        out: Path,
        settings: Settings,
        loss: Callable[[Model, Tensor], Tensor],
        evaluate: Callable[[Model], Mapping[str, Any]] | None,
        sample: Callable[[Model], str] | None,
        beside: list[Path],
    ) -> None:
        self.model, self.out, self.settings, self.beside = model, out, settings, beside
        self.evaluate, self.sample = evaluate, sample
        self.device = model.token.weight.device
        self.at = _Place(total=settings.steps)
        self.optimizer = make_optimizer(model, settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average = None
        if settings.average:
            self.average = ExponentialMovingAverage(model.parameters(), momentum=settings.average)
        self.sum = torch.zeros((), device=self.device)  # of the losses since the last record
        self.count = 0
        self.pauses = {"evaluate": 0.0, "save": 0.0}  # seconds that one of each takes
        self.pace = (0, 0.0)  # steps of this process after the first ones, and their seconds
        self.shown = (0, 0.0)  # tokens and seconds at the last record
        half = settings.bfloat16 if settings.bfloat16 is not None else self.device.type == "cuda"
        self.half = torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

        def compute(ids: Tensor) -> Tensor:
            return loss(model, ids)

        self.loss = torch.compile(compute, dynamic=False) if settings.compile else compute

    def train(self, data: Batches, asked: list[int]) -> None:
        """Run to the end, or until a signal was asked for; save."""
        at, settings = self.at, self.settings
        began = time.perf_counter() - at.seconds
        if at.step == 0:
            self.measure()
            at.seconds = time.perf_counter() - began
        self.model.train()
        self.shown = at.tokens, at.seconds
        first = at.step
        with ahead(data, epoch=at.epoch, step=at.batch, device=self.device) as batches:
            while not asked and (at.total is None or at.step < at.total):
                start = time.perf_counter()
                at.epoch, number, ids = next(batches)
                norm = self.update(ids)
                at.step, at.batch = at.step + 1, number + 1
                at.tokens += ids.numel() - len(ids)
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

    def update(self, ids: Tensor) -> float:
        """Make one step; return the norm of the gradient before it was clipped."""
        share = multiplier(self.settings, self.at.step, self.at.total)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        with self.half:
            loss = self.loss(ids)
        torch.autograd.backward(loss)
        limit = self.settings.clip or math.inf
        # Read at once: a step with a gradient that is not finite would spoil the weights for good.
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if math.isfinite(norm):
            self.optimizer.step()
            self.sum += loss.detach()
            self.count += 1
            if self.average is not None and (self.at.step + 1) % self.settings.average_every == 0:
                self.average.update()
        else:
            self.at.skipped += 1
            self.log.say(f"step {self.at.step}: the gradient's norm is {norm}; the batch is left out")
        self.optimizer.zero_grad()
        return norm

    def plan(self, limit: float) -> None:
        """Fix the number of steps so that the run ends after `limit` seconds; mend it where the speed has changed."""
        at, settings = self.at, self.settings
        steps, seconds = self.pace
        if steps < _MEASURE or (at.total is not None and at.step % settings.log_every):
            return
        each = seconds / steps
        each += self.pauses["evaluate"] / settings.evaluate_every + self.pauses["save"] / settings.save_every
        left = max(0.0, limit - at.seconds - self.pauses["evaluate"] - self.pauses["save"])
        total = at.step + int(left / each)
        if at.total is None or abs(total - at.total) > 0.01 * at.total:
            at.total = max(total, at.step)
            self.log.say(f"step {at.step}: {each:.4f} s each with all pauses, so {at.total} steps in all")

    def record(self, norm: float) -> None:
        """Write the mean loss since the last record, and the pace."""
        at = self.at
        loss = float(self.sum) / self.count if self.count else math.nan
        tokens, seconds = at.tokens - self.shown[0], at.seconds - self.shown[1]
        record = {
            "step": at.step, "total": at.total, "loss": loss, "norm": norm, "lr": self.optimizer.param_groups[0]["lr"],
            "epoch": at.epoch, "tokens": at.tokens, "seconds": at.seconds,
            "tokens_per_second": tokens / seconds if seconds > 0 else 0.0, "skipped": at.skipped,
        }  # fmt: skip
        self.log.write(record)
        pace = f"{record['tokens_per_second']:,.0f} tokens/s  {at.seconds:.0f} s"
        line = f"step {at.step}/{at.total or '?'}  loss {loss:.4f}  norm {norm:.2f}  lr {record['lr']:.2e}  {pace}"
        self.log.progress(line, step=at.step, total=at.total)
        self.sum.zero_()
        self.count, self.shown = 0, (at.tokens, at.seconds)

    def measure(self, *, averaged: bool = False) -> None:
        """Evaluate and write samples; keep the weights if they are the best so far."""
        at, start = self.at, time.perf_counter()
        if self.evaluate is not None:
            found = dict(self.evaluate(self.model))
            self.log.write({"step": at.step, "evaluation": found, "averaged": averaged})
            self.log.say(f"step {at.step}: {found[SCORE]:.4f} bits per character{' (averaged)' if averaged else ''}")
            if at.best is None or found[SCORE] < at.best:
                at.best = found[SCORE]
                save_checkpoint(self.out, "best", at.step, self.model, beside=self.beside)
        if self.sample is not None and at.step:
            with (self.out / "samples.txt").open("a", encoding="utf-8") as file:
                file.write(f"## step {at.step}{' (averaged)' if averaged else ''}\n\n{self.sample(self.model)}\n\n")
        self.pauses["evaluate"] = time.perf_counter() - start

    def finish(self) -> None:
        """Evaluate the end, and the moving average beside it; without an evaluation the end is the best."""
        self.measure()
        if self.average is not None and self.at.step >= self.settings.average_every:
            with self.average.applied():
                self.measure(averaged=True)
        if self.evaluate is None:
            save_checkpoint(self.out, "best", self.at.step, self.model, beside=self.beside)

    def save(self) -> None:
        """Keep all that going on needs, in a new folder; older ones are deleted."""
        start = time.perf_counter()
        state = {
            "place": asdict(self.at),
            "settings": asdict(self.settings),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "loss": {"sum": self.sum, "count": self.count},
            "generators": [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.sum.is_cuda else [])],
        }
        save_checkpoint(self.out, "last", self.at.step, self.model, state=state, beside=self.beside)
        self.pauses["save"] = time.perf_counter() - start

    def restore(self, folder: Path) -> None:
        """Go back to where `save` was. Raises CheckpointError if the settings are others."""
        state = read_state(folder)
        if other := self.settings.differences(state["settings"]):
            was, now = state["settings"].get(other[0]), getattr(self.settings, other[0])
            raise CheckpointError(f"{folder} was trained with {other[0]}={was}, now it is {now}; resume with the same")
        fill_from(self.model, folder)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.at = _Place(**state["place"])
        self.at.total = self.settings.steps or self.at.total
        self.sum += state["loss"]["sum"].to(self.device)
        self.count = state["loss"]["count"]
        torch.set_rng_state(state["generators"][0])
        if self.sum.is_cuda and len(state["generators"]) > 1:
            torch.cuda.set_rng_state(state["generators"][1])


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
