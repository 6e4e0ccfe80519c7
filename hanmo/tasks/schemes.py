"""Tags of tokens for spans that do not overlap: BIO, BMES and words; and the best path by Viterbi's algorithm.

    BIO      O, B-x, I-x                  a span is B-x and then I-x
    BMES     O, B-x, M-x, E-x, S-x        a span is B-x, then M-x, then E-x; or S-x alone
    words    S, B, M, E                   the same with one label and without O: every token is in a word

NumPy only; knows no network.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int, int]
"""Tokens start … stop - 1 and the number of the label."""

SCHEMES = {"BIO": "BI", "BMES": "BMES", "words": "SBME"}
_CONTINUES, _STOPS_LATER = "IME", "BM"


class Scheme:
    """The tags of a scheme for a task's labels.

    tags: names, in the order of a head's outputs, which is that of bert4keras's examples.
    label_of: number of each tag's label, -1 for O.
    follows: [tags, tags], whether the column's tag may follow the row's.
    """

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        letters = SCHEMES[name]
        outside = [] if name == "words" else [("O", -1)]
        parts = [*outside, *((letter, number) for number in range(len(labels)) for letter in letters)]
        self.tags = tuple(
            letter if number < 0 or name == "words" else f"{letter}-{labels[number]}" for letter, number in parts
        )
        self.label_of = np.array([number for _, number in parts])
        self._continues = np.array([letter in _CONTINUES for letter, _ in parts])
        # In BMES a span that has begun must come to its E; in BIO it may stop anywhere.
        self._stops_later = np.array([letter in _STOPS_LATER and name != "BIO" for letter, _ in parts])
        self._begins = np.array([letter in "BS" for letter, _ in parts])
        goes_on = np.array([letter in ("BI" if name == "BIO" else "BM") for letter, _ in parts])
        same = self.label_of[:, None] == self.label_of
        self.follows = np.where(self._continues, goes_on[:, None] & same, ~self._stops_later[:, None])
        self._bio = name == "BIO"
        self._tag_of = {part: tag for tag, part in enumerate(parts)}

    def encode(self, spans: Iterable[Span], length: int) -> NDArray[np.int64]:
        """Return the tag of each of `length` tokens."""
        tags = np.zeros(length, np.int64)
        for start, stop, label in spans:
            size = stop - start
            if self._bio:
                letters = "B" + "I" * (size - 1)
            else:
                letters = "B" + "M" * (size - 2) + "E" if size > 1 else "S"
            tags[start:stop] = [self._tag_of[letter, label] for letter in letters]
        return tags

    def decode(self, tags: Iterable[int], *, strict: bool = True) -> list[Span]:
        """Return the spans of a sequence of tags, which any may follow any.

        strict: a tag that continues another label than the span's ends the span and begins none, and a span without
        its E is none, as in seqeval's strict mode. Otherwise any tag that continues belongs to the span before it, as
        in bert4keras's examples.
        """
        found: list[Span] = []
        current: Span | None = None
        previous, everywhere = 0, not strict and self.tags[0] != "O"
        for place, tag in enumerate(tags):
            if current is not None and self._continues[tag] and (not strict or self.follows[previous, tag]):
                current = (current[0], place + 1, current[2])
            else:
                self._close(current, previous, strict, found)
                current = (place, place + 1, int(self.label_of[tag])) if self._begins[tag] or everywhere else None
            previous = tag
        self._close(current, previous, strict, found)
        return found

    def _close(self, span: Span | None, tag: int, strict: bool, found: list[Span]) -> None:
        if span is not None and not (strict and self._stops_later[tag]):
            found.append(span)

    def path(self, scores: NDArray[Any], transitions: NDArray[Any] | float = 0.0) -> NDArray[np.int64]:
        """Return the best sequence of tags among those that the scheme allows; arguments as of `viterbi`."""
        allowed = np.where(self.follows, transitions, -np.inf)
        return viterbi(scores, allowed, np.flatnonzero(self._continues), np.flatnonzero(self._stops_later))

    def probabilities(
        self, scores: NDArray[Any], transitions: NDArray[Any] | float, spans: Sequence[Span]
    ) -> list[float]:
        """Return the probability of each span: of the sequences that have it, of all that the scheme allows.

        Arguments as of `viterbi`. By forward and backward sums of the chain (Lafferty et al. 2001), in float64.
        """
        if not spans:
            return []
        scores = np.array(scores, np.float64)
        scores[0, self._continues] = scores[-1, self._stops_later] = -np.inf
        allowed = np.where(self.follows, transitions, -np.inf)
        between, weights = (
            np.broadcast_to(each, (len(scores) - 1, *self.follows.shape)) for each in (allowed, np.exp(allowed))
        )
        before, after = [scores[0]], [np.zeros(len(self.tags))]
        for step, weight in zip(scores[1:], weights, strict=True):
            before.append(_log_product(before[-1], weight) + step)
        for step, weight in zip(scores[:0:-1], weights[::-1], strict=True):
            after.append(_log_product(step + after[-1], weight.T))
        total, found = np.logaddexp.reduce(before[-1]), []
        for start, stop, label in spans:
            tags = self.encode([(0, stop - start, label)], stop - start)
            steps, inside = np.arange(start, stop), before[start][tags[0]]
            inside += between[steps[:-1], tags[:-1], tags[1:]].sum() + scores[steps[1:], tags[1:]].sum()
            if stop < len(scores):  # the tag that follows does not continue the span
                next_tags = between[stop - 1][tags[-1]] + scores[stop] + after[-1 - stop]
                inside += np.logaddexp.reduce(next_tags[~self._continues])
            found.append(min(1.0, float(np.exp(inside - total))))
        return found


def _log_product(logs: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of exp(logs) [n] times weights [n, m]."""
    top = logs.max()
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.log(np.exp(logs - top) @ weights) + top
    return found


def viterbi(
    scores: NDArray[Any],
    transitions: NDArray[Any],
    not_first: Sequence[int] | NDArray[Any] = (),
    not_last: Sequence[int] | NDArray[Any] = (),
) -> NDArray[np.int64]:
    """Return the labels [steps] with the largest sum of scores [steps, labels] and of transitions between them.

    transitions: [labels, labels] from row to column, or one such for each step but the first.
    not_first, not_last: labels that the first and the last step may not have. Of equal sums the lower label wins.
    """
    scores = np.array(scores, dtype=np.result_type(scores, np.float16))
    if not len(scores):
        return np.zeros(0, np.int64)
    scores[0, list(not_first)] = -np.inf
    scores[-1, list(not_last)] = -np.inf
    between = np.broadcast_to(transitions, (len(scores) - 1, *transitions.shape[-2:]))
    best, parents = scores[0], []
    for step, change in zip(scores[1:], between, strict=True):
        reached = best[:, None] + change + step
        parents.append(reached.argmax(axis=0))
        best = reached.max(axis=0)
    path = [int(best.argmax())]
    for parent in reversed(parents):
        path.append(int(parent[path[-1]]))
    return np.array(path[::-1], np.int64)


def memm_scores(scores: NDArray[Any], transitions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scores and transitions whose sum along labels is their log-likelihood in a MEMM that runs both ways.

    It is the mean of the two directions', as in `chains.memm_losses`. Viterbi's algorithm finds the most likely labels
    with them. The sum of scores [n, labels] and transitions [labels, labels] as they are, which bert4keras's author
    uses, leaves out what normalizes each position.
    Returns [n, labels] and [n - 1, labels, labels].
    """
    ends = np.zeros(scores.shape)
    for place in (0, -1) if len(scores) else ():
        ends[place] += (scores[place] - np.logaddexp.reduce(scores[place])) / 2
    forward = (scores[1:, None, :] + transitions) / 2
    backward = (scores[:-1, :, None] + transitions) / 2
    forward -= np.logaddexp.reduce(forward, axis=2, keepdims=True)
    backward -= np.logaddexp.reduce(backward, axis=1, keepdims=True)
    return ends, (forward + backward) / 2
