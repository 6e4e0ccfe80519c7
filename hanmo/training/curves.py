"""What a run's log looks like: a picture of its curves, and TensorBoard while it goes on. Both packages are optional.

Knows records of log.jsonl. Knows no model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import MissingExtra
from hanmo.training.log import read_log

__all__ = ["draw_curves", "tensorboard"]


def draw_curves(out: Path, *, unit: str) -> Path:
    """Draw loss and evaluations of OUT/log.jsonl against steps into OUT/curves.png.

    unit: the evaluations' key, such as "bits_per_character". Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("curves.png needs matplotlib; install it with: pip install 'hanmo[plots]'") from None
    records = read_log(out / "log.jsonl")
    losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
    found = [record for record in records if "evaluation" in record]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    left.plot(*_columns(losses), color="tab:blue", linewidth=1)
    left.set_xlabel("step")
    left.set_ylabel("training loss, nats a token", color="tab:blue")
    left.grid(alpha=0.3)
    right = left.twinx()
    measured = [(record["step"], record["evaluation"][unit]) for record in found if not record["averaged"]]
    right.plot(*_columns(measured), color="tab:orange", marker="o", markersize=4)
    if averaged := [(record["step"], record["evaluation"][unit]) for record in found if record["averaged"]]:
        right.plot(*_columns(averaged), color="tab:red", marker="*", linestyle="none", label="averaged weights")
        right.legend(loc="upper right")
    right.set_ylabel(f"held out, {unit.replace('_', ' ')}", color="tab:orange")
    path = out / "curves.png"
    with atomic_path(path) as made:
        figure.savefig(made, format="png", dpi=120)
    return path


@contextmanager
def tensorboard(out: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that shows each record in TensorBoard, from files in OUT/tensorboard.

    Raises MissingExtra where TensorBoard is not installed.
    """
    try:
        board: Any = import_module("torch.utils.tensorboard")
    except ImportError:
        raise MissingExtra("TensorBoard is not installed; install it with: pip install tensorboard") from None
    with board.SummaryWriter(out / "tensorboard") as writer:

        def show(record: Mapping[str, Any]) -> None:
            numbers = record.get("evaluation", record)
            for name, value in numbers.items():
                if isinstance(value, int | float) and name not in ("step", "total"):
                    tag = f"evaluation/{name}" if "evaluation" in record else name
                    writer.add_scalar(tag, value, record["step"])

        yield show


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
