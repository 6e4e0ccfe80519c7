"""Beam search, with the engines, settings and limits of loop.py.

The rules change log-probabilities, after the softmax, as in transformers: a ban does not change other ids' scores.
The cache is reordered by the parents of the open rows at every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hanmo.generate import rules
from hanmo.generate.draw import check_scores, nothing_left
from hanmo.generate.loop import PLAIN, UNLIMITED, Engine, Limits, check_prompt, room_behind
from hanmo.generate.rules import Array
from hanmo.generate.sampling import Sampling

Stop = Callable[[Sequence[int]], str | None]


@dataclass(frozen=True)
class Beam:
    """One continuation.

    ids: an end id included.   score: sum of log-probabilities, after repetition_penalty, / len(ids) ** length_penalty.
    reason: as in `loop.End`.
    """

    ids: tuple[int, ...]
    score: float
    reason: str


def beam_search(
    engine: Engine,
    prompt: Sequence[int],
    num_beams: int,
    *,
    sampling: Sampling = PLAIN,
    limits: Limits = UNLIMITED,
    length_penalty: float = 0.0,
    history: bool = True,
    stop: Stop | None = None,
) -> list[Beam]:
    """Find up to `num_beams` continuations of one prompt, best first.

    num_beams: 1 or more; 1 without length_penalty is greedy search.
    length_penalty: 0 compares sums, which favours short texts; 1 compares means (Wu et al. 2016, arXiv 1609.08144,
    with a plain power of the length).
    sampling: allowed, banned and the repetition rules; the other settings have no effect.
    stop: called with the new ids of a row; a str ends the row.   history: as in `loop.sample`.
    The search ends when no open row can enter the pool of the best ended rows.
    Raises ConfigError, PromptError and CheckpointError as `loop.sample` does.
    """
    rules.check_count("num_beams", num_beams)
    check_prompt(engine, prompt)
    search = _Search(num_beams, limits, length_penalty, stop, room_behind(engine, prompt, limits))
    if search.room == 0:
        return [Beam((), 0.0, "context")]
    cache, logits = engine.prefill([prompt], room=search.room)
    past = tuple(prompt) if history else ()
    while True:
        scores = limits.apply(_log_softmax(logits), search.written)
        parents = search.advance(sampling.restrict(scores, [past + row for row in search.rows]))
        if not parents:
            return search.best()
        cache.reorder(parents)
        logits = cache.step([row[-1] for row in search.rows])


@dataclass
class _Search:
    num_beams: int
    limits: Limits
    penalty: float
    stop: Stop | None
    room: int
    rows: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    scores: list[float] = field(default_factory=lambda: [0.0])
    pool: list[Beam] = field(default_factory=list)
    written: int = 0

    def advance(self, likelihoods: Array) -> list[int]:
        """Append the best ids and return the parents of the open rows; [] ends the search."""
        totals = np.asarray(self.scores)[:, None] + likelihoods
        wanted = self.num_beams * (2 + len(self.limits.end_ids))  # leaves num_beams open rows whichever end
        order = np.argsort(-totals, axis=None, kind="stable")[:wanted]
        self.written += 1
        parents: list[int] = []
        rows: list[tuple[int, ...]] = []
        scores: list[float] = []
        for rank, place in enumerate(order.tolist()):
            parent, id = divmod(place, totals.shape[1])
            score = float(totals[parent, id])
            if score == -np.inf or len(rows) == self.num_beams:
                break
            row = (*self.rows[parent], id)
            reason = self.limits.reason(len(row), id, self.room, self.stop and partial(self.stop, row))
            if reason is None:
                parents.append(parent)
                rows.append(row)
                scores.append(score)
            elif rank < self.num_beams:  # a lower-ranked end is not a hypothesis, as in transformers
                self.pool.append(Beam(row, score / len(row) ** self.penalty, reason))
        self.rows, self.scores = rows, scores
        if not rows and not self.pool:
            raise nothing_left(totals.shape[1])
        return [] if self._settled() else parents

    def best(self) -> list[Beam]:
        """Return the best of the pool, best first."""
        return sorted(self.pool, key=lambda beam: -beam.score)[: self.num_beams]

    def _settled(self) -> bool:
        """Tell whether no open row can still beat the pool: scores only fall, lengths are bounded."""
        if not self.rows:
            return True
        if len(self.pool) < self.num_beams:
            return False
        longest = self.room if self.penalty > 0 else self.written + 1
        return self.best()[-1].score >= max(self.scores) / longest**self.penalty


def _log_softmax(logits: Array) -> "np.ndarray[Any, Any]":
    check_scores(logits)
    scores = rules.to_numpy(rules.widen(logits))
    highest = scores.max(axis=-1, keepdims=True)
    shifted = scores - np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):  # a row of only -inf has no successors
        total = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted - np.where(np.isfinite(total), total, 0)
