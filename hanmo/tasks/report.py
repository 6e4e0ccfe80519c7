"""What an evaluation shows beside its scores: each label's, and what is taken for what.

Knows rows and results with "label", "labels" or "spans".
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from hanmo.errors import ConfigError
from hanmo.tasks.rows import Row
from hanmo.tasks.scores import Counts, count_sets

NOTHING = "–"


def scores_by_label(rows: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> dict[str, Counts]:
    """Count the correct, predicted and true items of each label, sorted by label.

    {} for other rows than those with "label", "labels" or "spans", and for relations, whose spans have no own labels.
    """
    key = _key(rows, results)
    true, predicted = [_items(row.data, key) for row in rows], [_items(result, key) for result in results]
    labels = sorted({label for side in (true, predicted) for items in side for _, label in items})
    return {
        label: count_sets(*([_of(label, items) for items in side] for side in (true, predicted))) for label in labels
    }


def confused(rows: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return true and predicted labels, pair by pair: one of a row, or one of each place that has a span.

    A place that only one side has a span at is paired with "–". Raises ConfigError for a task with neither.
    """
    key, pairs = _key(rows, results), list[tuple[str, str]]()
    if key not in ("label", "spans") or any("relations" in result for result in results):
        raise ConfigError("a confusion matrix is of tasks with one label a text, or spans")
    for row, result in zip(rows, results, strict=True):
        sides = [_by_place(_items(data, key)) for data in (row.data, result)]
        for place in sorted(set(sides[0]) | set(sides[1])):
            ours, theirs = (set(side.get(place, ())) for side in sides)
            pairs += [(label, label) for label in sorted(ours & theirs)]
            pairs += zip_longest(sorted(ours - theirs), sorted(theirs - ours), fillvalue=NOTHING)
    return [true for true, _ in pairs], [predicted for _, predicted in pairs]


def labels_of(data: Mapping[str, Any]) -> set[str]:
    """Return the labels of a row or a result that has "labels", or one "label"."""
    return {label for _, label in _items(data, "labels" if "labels" in data else "label")}


def _key(rows: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the key under which both rows and results have labels."""
    if not results or "relations" in results[0]:
        return None
    return next((key for key in ("spans", "labels", "label") if key in rows[0].data and key in results[0]), None)


def _items(data: Mapping[str, Any], key: str | None) -> list[tuple[tuple[int, ...], str]]:
    """Return the (place, label) of a row or a result; the place of the whole text is ()."""
    if key == "spans":
        return [((span["start"], span["stop"]), span["label"]) for span in data.get(key, [])]
    return [] if key is None else [((), label) for label in (data[key] if key == "labels" else [data[key]])]


def _of(label: str, items: Sequence[tuple[tuple[int, ...], str]]) -> list[Hashable]:
    return [place for place, each in items if each == label]


def _by_place(items: Sequence[tuple[tuple[int, ...], str]]) -> dict[tuple[int, ...], list[str]]:
    found: dict[tuple[int, ...], list[str]] = {}
    for place, label in items:
        found.setdefault(place, []).append(label)
    return found
