"""A run's log: JSON lines for programs, a progress bar or plain lines for people, a picture of its curves, TensorBoard.

Knows records, dicts of numbers that carry a "step". Knows no model. Matplotlib and TensorBoard are optional.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import CorruptFile, MissingExtra
from hanmo.files import parse_json, read_bytes

_EVERY = 10  # seconds between plain lines without a terminal


class Log:
    """OUT/log.jsonl and the screen, as a context manager.

    path: None writes no file.   console: where messages go; None shows nothing.
    after: step whose later records are dropped first, when a run is resumed there; None starts a new file.
    evaluated: step of the last evaluation then; an evaluation at `after` is repeated unless it is this one.
    """

    def __init__(
        self, path: Path | None, console: Console | None, *, after: int | None = None, evaluated: int = -1
    ) -> None:
        self._file: TextIO | None = None
        if path is not None:
            kept = []
            for record in read_log(path) if after is not None and path.is_file() else []:
                again = "evaluation" in record and (record.get("averaged") or evaluated != after)
                if record["step"] < after or (record["step"] == after and not again):
                    kept.append(_line(record))
            with atomic_path(path) as made:
                made.write_text("".join(kept), "utf-8")
            self._file = path.open("a", encoding="utf-8")
        self._console, self._shown = console, float("-inf")
        self._bar: Progress | None = None

    def __enter__(self) -> "Log":
        if self._console is not None and self._console.is_terminal:
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), console=self._console)
            self._bar.add_task("training", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to the file and flush it."""
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()

    def progress(self, line: str, *, step: int, total: int | None) -> None:
        """Show the position of the run: a bar on a terminal, else a line every few seconds."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, total=total, description=line)
        elif time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            self.say(line)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log.jsonl; an unfinished last line is left out.

    Raises CorruptFile naming the line that is no record.
    """
    records = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        record = parse_json(line, f"{path} line {number}", advice="; remove that line")
        if type(record.get("step")) is not int or not isinstance(record.get("evaluation", {}), dict):
            raise CorruptFile(f"{path} line {number} is no record of a step; remove that line")
        records.append(record)
    return records


def draw_curves(out: Path, *, unit: str, loss: str = "training loss, nats a token") -> Path:
    """Draw loss and evaluations of OUT/log.jsonl against steps into OUT/curves.png.

    unit: key of the evaluations, such as "bits_per_character".   loss: label of the loss's axis.
    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("curves.png needs matplotlib; install it with: pip install 'hanmo[plots]'") from None
    records = read_log(out / "log.jsonl")
    losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
    found = [(r["step"], r["evaluation"][unit], r["averaged"]) for r in records if "evaluation" in r]
    scores, averaged = ([(step, score) for step, score, a in found if a == kind] for kind in (False, True))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    left.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1)
    left.set_xlabel("step")
    left.set_ylabel(loss, color="tab:blue")
    left.grid(alpha=0.3)
    right = left.twinx()
    right.plot(*zip(*scores, strict=True), color="tab:orange", marker="o", markersize=4)
    if averaged:
        right.plot(
            *zip(*averaged, strict=True), color="tab:red", marker="*", linestyle="none", label="averaged weights"
        )
        right.legend(loc="upper right")
    right.set_ylabel(f"held out, {unit.replace('_', ' ')}", color="tab:orange")
    path = out / "curves.png"
    with atomic_path(path) as made:
        figure.savefig(made, format="png", dpi=120)
    return path


@contextmanager
def tensorboard(out: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes records for TensorBoard into OUT/tensorboard.

    Raises MissingExtra if TensorBoard is not installed.
    """
    try:
        board: Any = import_module("torch.utils.tensorboard")
    except ImportError:
        raise MissingExtra("TensorBoard is not installed; install it with: pip install tensorboard") from None
    with board.SummaryWriter(out / "tensorboard") as writer:

        def show(record: Mapping[str, Any]) -> None:
            for name, value in record.get("evaluation", record).items():
                if isinstance(value, int | float) and name not in ("step", "total", "higher_is_better"):
                    tag = f"evaluation/{name}" if "evaluation" in record else name
                    writer.add_scalar(tag, value, record["step"])

        yield show


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
