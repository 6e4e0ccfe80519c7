"""Beam search: the likeliest continuations, found by following the best few at once.

Knows ids and the same engines, settings and limits as `loop.py`. Does not know text: `stop` is asked about whole rows.
The rules change log-probabilities, after the softmax, as in transformers: a ban changes the score of no other id.
The cache is re-ordered by the parents of the rows that go on, so every row keeps the keys and values of its own past.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hanmo.errors import ConfigError
from hanmo.generate import rules
from hanmo.generate.draw import check_scores
from hanmo.generate.loop import PLAIN, UNLIMITED, Engine, Limits, check_prompt, room_behind
from hanmo.generate.rules import Array
from hanmo.generate.sampling import Sampling

Stop = Callable[[Sequence[int]], str | None]


@dataclass(frozen=True)
class Beam:
    """One continuation.

    ids: as written, an end id included.   score: sum of log-probabilities over len(ids) ** length_penalty; the model's
    own, but for ids that repetition_penalty made less likely.
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

    num_beams: rows followed at once, 1 or more; 1 without length_penalty is the greedy choice.
    length_penalty: 0 compares sums, which favours short texts; 1 compares means (Wu et al. 2016, arXiv 1609.08144,
    with a plain power of the length).
    sampling: allowed, banned and the repetition rules; nothing is drawn, so the rest of it has no effect.
    stop: asked with the ids of a row; a word ends the row.   history: as in `loop.sample`.
    Ended rows are kept in a pool; the search ends when no open row can enter it any more.
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
        """Append the best ids to the rows and return the parents of the rows that go on; none ends the search."""
        totals = np.asarray(self.scores)[:, None] + likelihoods
        wanted = self.num_beams * (
            2 + len(self.limits.end_ids)
        )  # enough for `num_beams` open rows beside those that end
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
            reason = self._reason(row)
            if reason is None:
                parents.append(parent)
                rows.append(row)
                scores.append(score)
            elif (
                rank < self.num_beams
            ):  # an end that is not among the best is no hypothesis, as in Hugging Face's search
                self.pool.append(Beam(row, score / len(row) ** self.penalty, reason))
        self.rows, self.scores = rows, scores
        if not rows and not self.pool:
            raise ConfigError(
                f"the rules leave none of {totals.shape[1]} ids to choose from: allow more ids, ban fewer, or raise or "
                "leave out no_repeat_ngram"
            )
        return [] if self._settled() else parents

    def best(self) -> list[Beam]:
        """Return the best of the pool, best first."""
        return sorted(self.pool, key=lambda beam: -beam.score)[: self.num_beams]

    def _reason(self, row: tuple[int, ...]) -> str | None:
        reason = self.limits.reason(len(row), row[-1])
        if reason != "end" and self.stop is not None:
            reason = self.stop(row) or reason
        return reason or ("context" if len(row) == self.room else None)

    def _settled(self) -> bool:
        """Say whether no open row can still beat the worst of the best: scores only fall, lengths are bounded."""
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
    with np.errstate(divide="ignore"):  # a row of only -inf stays so and has no successors
        total = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted - np.where(np.isfinite(total), total, 0)
