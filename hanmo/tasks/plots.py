"""Pictures of an evaluation: what is taken for what, how reliable probabilities are, precision against recall.

Knows rows, results and the task that they are of. Matplotlib is optional.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import ConfigError, MissingExtra
from hanmo.tasks.pointer_task import ItemTask
from hanmo.tasks.report import NOTHING, confused, labels_of
from hanmo.tasks.rows import Row
from hanmo.tasks.scores import confusion
from hanmo.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 10
_SHOWN = 10  # labels with a curve of their own, the most frequent ones
_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC", "Microsoft YaHei",
    "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Droid Sans Fallback", "Arial Unicode MS",
)  # fmt: skip


class Ranked(NamedTuple):
    """What was predicted of one label: the score of each item and whether it is right.   true: items there are."""

    scores: list[float]
    right: list[bool]
    true: int


def draw_plots(task: Task, rows: Sequence[Row], results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw the pictures that results allow into a folder, and return their paths.

    confusion.png of single labels and spans; reliability.png of probabilities; precision_recall.png of labels with
    scores; none for kinds without them. Raises MissingExtra without matplotlib.
    """
    made: dict[str, Callable[[Path], object]] = {}
    with suppress(ConfigError):
        made["confusion.png"] = partial(draw_confusion, *confused(rows, results))
    if "probabilities" in results[0]:
        made["reliability.png"] = partial(_draw_reliability, *reliability(rows, results))
    if found := ranked(task, rows, results):
        made["precision_recall.png"] = partial(_draw_precision_recall, found)
    if made:
        folder.mkdir(parents=True, exist_ok=True)
    for name, draw in made.items():
        draw(folder / name)
    return [folder / name for name in made]


def ranked(task: Task, rows: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> dict[str, Ranked]:
    """Return the scored items of each label; {} for a task whose results have no scores of labels.

    Of spans and relations only those above the threshold are there.
    """
    found = {label: Ranked([], [], 0) for label in task.config.labels}
    for row, result in zip(rows, results, strict=True):
        if "probabilities" in result:
            true = {(label,) for label in labels_of(row.data)}
            items = [((label,), score) for label, score in result["probabilities"].items()]
        elif isinstance(task, ItemTask):
            key = "relations" if "relations" in result else "spans"
            true = task.true_items(row)
            items = [(*task.found_items(row, {**result, key: [each]}), each["score"]) for each in result[key]]
        else:
            return {}
        for item, score in items:
            found[item[0]].scores.append(score)
            found[item[0]].right.append(item in true)
        for item in true:
            found[item[0]] = found[item[0]]._replace(true=found[item[0]].true + 1)
    return {label: each for label, each in found.items() if each.true or each.scores}


def precision_recall(found: Ranked) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return recall and precision at each score, from the highest, and the average precision."""
    scores, right = np.array(found.scores), np.array(found.right, bool)
    order = np.argsort(-scores, kind="stable")
    last = np.append(scores[order][1:] < scores[order][:-1], True)[: len(order)]  # equal scores count together
    hits = np.cumsum(right[order])[last]
    precision, recall = hits / (np.flatnonzero(last) + 1), hits / max(1, found.true)
    return recall, precision, float((np.diff(recall, prepend=0.0) * precision).sum())


def reliability(
    rows: Sequence[Row], results: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the mean probability, the share that is right and the number of predictions in each of 10 equal bins.

    Of single labels the predicted one counts, of several labels each.
    """
    odds, right = list[float](), list[bool]()
    for row, result in zip(rows, results, strict=True):
        true = labels_of(row.data)
        chosen = [result["label"]] if "label" in result else list(result["probabilities"])
        odds += [result["probabilities"][label] for label in chosen]
        right += [label in true for label in chosen]
    places = np.minimum((np.array(odds) * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(places, minlength=_BINS)
    means, shares = (np.bincount(places, values, _BINS) / np.maximum(counts, 1) for values in (odds, right))
    return means, shares, counts


def draw_confusion(true: Sequence[str], predicted: Sequence[str], path: Path) -> list[str]:
    """Draw a confusion matrix, rows true and columns predicted, as a PNG; return the labels in their order.

    Where no installed font has Chinese characters, labels are shown as their numbers in this order, from 1.
    Raises MissingExtra without matplotlib.
    """
    labels = sorted({*true, *predicted}, key=lambda label: (label == NOTHING, label))
    counts = confusion(true, predicted, labels)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    size = max(4.0, 1.5 + 0.45 * len(labels))
    figure, names, how = _figure((size + 0.5, size), labels)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, **how)
    axes.set_yticks(range(len(names)), names, **how)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                axes.text(x, y, f"{count:,}", ha="center", va="center", color="w" if shares[y][x] > 0.5 else "k")
    _save(figure, path)
    return labels


def _draw_reliability(
    odds: NDArray[np.float64], right: NDArray[np.float64], counts: NDArray[np.int64], path: Path
) -> None:
    figure, _, _ = _figure((5, 5), ())
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axes.bar((np.arange(_BINS) + 0.5) / _BINS, counts / counts.sum(), 0.9 / _BINS, color="lightgray", label="share")
    axes.plot(odds[counts > 0], right[counts > 0], marker="o", color="tab:blue", label="right")
    axes.set_xlabel("probability")
    axes.set_ylabel("share that is right")
    axes.set_title(f"expected calibration error {(abs(odds - right) * counts).sum() / counts.sum():.4f}")
    axes.legend(loc="upper left")
    _save(figure, path)


def _draw_precision_recall(found: Mapping[str, Ranked], path: Path) -> None:
    labels = sorted(found, key=lambda label: -found[label].true)[:_SHOWN]
    figure, names, how = _figure((7, 5), labels)
    axes = figure.subplots()
    for label, name in zip(labels, names, strict=True):
        recall, precision, average = precision_recall(found[label])
        axes.step(recall, precision, where="post", marker=".", label=f"{name} {average:.3f}")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title("labels and their average precision")
    axes.legend(prop={"family": how["fontfamily"]} if how else None)
    _save(figure, path)


def _figure(size: tuple[float, float], labels: Sequence[str]) -> tuple["Figure", list[str], dict[str, Any]]:
    """Return a figure, the names that its font can show of labels, and the arguments that choose the font."""
    try:
        from matplotlib import font_manager
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a picture needs matplotlib; install it with: pip install 'hanmo[plots]'") from None
    installed = {font.name for font in font_manager.fontManager.ttflist}
    font = next((name for name in _FONTS if name in installed), None)
    plain = font is not None or "".join(labels).replace(NOTHING, "").isascii()
    names = list(labels) if plain else [str(number) for number in range(1, len(labels) + 1)]
    how: dict[str, Any] = {} if font is None else {"fontfamily": [font, "sans-serif"]}
    return Figure(figsize=size, layout="constrained"), names, how


def _save(figure: "Figure", path: Path) -> None:
    with atomic_path(path) as made:
        figure.savefig(made, format="png", dpi=120)
