"""Beam search, with the engines, settings and limits of loop.py.

The rules change log-probabilities, after the softmax, as in transformers: a ban does not change other ids' scores.
The cache is reordered by the parents of the open rows at every step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hanmo.generate import rules
from hanmo.generate.draw import check_scores, no_choice
from hanmo.generate.loop import PLAIN, UNLIMITED, Engine, Limits, check_prompt, room_behind
from hanmo.generate.rules import Array
from hanmo.generate.sampling import Sampling


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
    stop: Callable[[Sequence[int]], str | None] | None = None,
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
    room = room_behind(engine, prompt, limits)
    if room == 0:
        return [Beam((), 0.0, "context")]
    cache, logits = engine.prefill([prompt], room=room)
    past = tuple(prompt) if history else ()
    candidates = num_beams * (2 + len(limits.end_ids))  # leaves num_beams open rows whichever end
    opened: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]  # score, parent, ids of each row
    pool: list[Beam] = []
    for written in range(1, room + 1):
        before = [ids for _, _, ids in opened]
        scores = sampling.restrict(limits.apply(_log_softmax(logits), written - 1), [past + ids for ids in before])
        best = _best(np.array([[score] for score, _, _ in opened]) + scores, before, candidates)
        opened = []
        for rank, (score, parent, ids) in enumerate(best):
            if len(opened) == num_beams:
                break
            reason = limits.reason(written, ids[-1], room, stop and partial(stop, ids))
            if reason is None:
                opened.append((score, parent, ids))
            elif rank < num_beams:  # a lower-ranked end is not a hypothesis, as in transformers
                pool.append(Beam(ids, score / written**length_penalty, reason))
        if not opened and not pool:
            raise no_choice(engine.vocab_size)
        pool = sorted(pool, key=lambda beam: -beam.score)[:num_beams]
        # Scores only fall and lengths are bounded, so what an open row can still reach is known.
        longest = room if length_penalty > 0 else written + 1
        if not opened or (len(pool) == num_beams and pool[-1].score >= opened[0][0] / longest**length_penalty):
            break
        cache.reorder([parent for _, parent, _ in opened])
        logits = cache.step([ids[-1] for _, _, ids in opened])
    return pool


def _best(
    totals: "np.ndarray[Any, Any]", rows: Sequence[tuple[int, ...]], count: int
) -> Iterator[tuple[float, int, tuple[int, ...]]]:
    """Yield score, parent and ids of the best continuations of the rows.   totals: [rows, vocab_size], scores."""
    for place in np.argsort(-totals, axis=None, kind="stable")[:count].tolist():
        parent, id = divmod(place, totals.shape[1])
        score = float(totals[parent, id])
        if score == -np.inf:
            return
        yield score, parent, (*rows[parent], id)


def _log_softmax(logits: Array) -> "np.ndarray[Any, Any]":
    check_scores(logits)
    scores = rules.to_numpy(rules.widen(logits))
    highest = scores.max(axis=-1, keepdims=True)
    shifted = scores - np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):  # a row of only -inf has no successors
        total = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted - np.where(np.isfinite(total), total, 0)
