"""Answers that are a part of a passage, chosen token by token, and the vote of several windows.

Knows ids and probabilities; knows no network and no text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Match:
    """A part of a passage's ids that grows by the likeliest id, of those that follow it in the passage and the end id.

    As in bert4keras's task_reading_comprehension_by_mlm.py.   done: whether the end id was chosen.
    """

    def __init__(self, passage: Sequence[int], end: int) -> None:
        self.passage, self.end = passage, end
        self.starts = list(range(len(passage)))
        self.length, self.steps, self.total = 0, 0, 0.0
        self.done = False

    def push(self, probabilities: NDArray[np.floating[Any]]) -> int:
        """Choose the next id by the probabilities of all ids [vocab]; return it."""
        following = {at: self.passage[at + self.length] for at in self.starts if at + self.length < len(self.passage)}
        allowed = sorted({self.end, *following.values()})
        chosen = allowed[int(np.argmax(probabilities[allowed]))]
        self.total += float(probabilities[chosen])
        self.steps += 1
        self.done = chosen == self.end
        if not self.done:
            self.starts = [at for at, id in following.items() if id == chosen]
            self.length += 1
        return chosen

    @property
    def place(self) -> tuple[int, int] | None:
        """The first place (start, stop) of the part in the passage; None if it is empty."""
        return (self.starts[0], self.starts[0] + self.length) if self.length else None

    @property
    def score(self) -> float:
        """Mean probability of the chosen ids."""
        return self.total / max(1, self.steps)


def vote(answers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the score of each answer by the scores s that windows give it: Σ s² / (Σ s + 1), as in bert4keras."""
    return {answer: sum(s * s for s in scores) / (sum(scores) + 1) for answer, scores in answers.items()}
