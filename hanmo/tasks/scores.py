"""Scores of results: accuracy, F1, rank correlation, exact match. Every score is defined, 0 where empty.

Knows sequences of labels, sets and numbers; knows no task.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Labels: TypeAlias = Sequence[str]


@dataclass(frozen=True)
class Counts:
    """Numbers of correct, predicted and true items; they can be added."""

    correct: int = 0
    predicted: int = 0
    true: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.correct + other.correct, self.predicted + other.predicted, self.true + other.true)

    @property
    def precision(self) -> float:
        """Share of the predicted items that are correct."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the true items that are predicted."""
        return self.correct / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 without a correct item."""
        return 2 * self.correct / (self.predicted + self.true) if self.correct else 0.0


def accuracy(true: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the share of equal items."""
    return sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true) if true else 0.0


def label_counts(true: Sequence[Iterable[str]], predicted: Sequence[Iterable[str]]) -> dict[str, Counts]:
    """Count each label over rows of labels, sorted by label."""
    found: dict[str, Counts] = {}
    for ours, theirs in zip(map(set, true), map(set, predicted), strict=True):
        for label in ours | theirs:
            one = Counts(int(label in ours and label in theirs), int(label in theirs), int(label in ours))
            found[label] = found.get(label, Counts()) + one
    return dict(sorted(found.items()))


def macro_f1(counts: dict[str, Counts]) -> float:
    """Return the mean F1 of the labels that occur, as scikit-learn's `f1_score(average="macro")` does."""
    return sum(each.f1 for each in counts.values()) / len(counts) if counts else 0.0


def micro_f1(counts: dict[str, Counts]) -> float:
    """Return the F1 of all labels together."""
    return sum(counts.values(), Counts()).f1


def count_sets(true: Sequence[Iterable[Hashable]], predicted: Sequence[Iterable[Hashable]]) -> Counts:
    """Count items that are equal in all their parts, row by row: spans (start, stop, label), relations, events.

    An item given twice in a row counts once. Over entities this is what seqeval calls strict.
    """
    pairs = zip(map(set, true), map(set, predicted), strict=True)
    return sum((Counts(len(ours & theirs), len(theirs), len(ours)) for ours, theirs in pairs), Counts())


def set_scores(true: Sequence[Iterable[Hashable]], predicted: Sequence[Iterable[Hashable]]) -> dict[str, float]:
    """Return "f1", "precision" and "recall" of `count_sets`."""
    counts = count_sets(true, predicted)
    return {"f1": counts.f1, "precision": counts.precision, "recall": counts.recall}


def pearson(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the linear correlation; 0 where one side is constant or there are fewer than two values."""
    if len(set(true)) < 2 or len(set(predicted)) < 2:
        return 0.0
    ours, theirs = (np.array(side, np.float64) - np.mean(side) for side in (true, predicted))
    scale = np.sqrt((ours @ ours) * (theirs @ theirs))
    return float(ours @ theirs / scale)


def spearman(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the rank correlation; equal values share the mean of their ranks."""
    return pearson(_ranks(true), _ranks(predicted))


def _ranks(values: Sequence[float]) -> list[float]:
    _, places, counts = np.unique(np.array(values, np.float64), return_inverse=True, return_counts=True)
    ranks: list[float] = (np.cumsum(counts) - (counts + 1) / 2)[places].tolist()
    return ranks


def answer_scores(true: Sequence[Labels], predicted: Sequence[str]) -> dict[str, float]:
    """Return "exact_match" and "f1" of answers: SQuAD's scores, over characters instead of words.

    true: the right answers of each row, of which the best counts; none means that "" is right.
    """
    exact = [float(answer in (wanted or [""])) for wanted, answer in zip(true, predicted, strict=True)]
    overlap = [
        max(_overlap(one, answer) for one in wanted or [""]) for wanted, answer in zip(true, predicted, strict=True)
    ]
    count = max(1, len(exact))
    return {"exact_match": sum(exact) / count, "f1": sum(overlap) / count}


def _overlap(true: str, predicted: str) -> float:
    if not true or not predicted:
        return float(true == predicted)
    common = sum((Counter(true) & Counter(predicted)).values())
    return Counts(common, len(predicted), len(true)).f1


def confusion(true: Labels, predicted: Labels, labels: Labels) -> list[list[int]]:
    """Count (true, predicted) pairs: rows are true labels, columns predicted ones."""
    pairs = Counter(zip(true, predicted, strict=True))
    return [[pairs[row, column] for column in labels] for row in labels]
