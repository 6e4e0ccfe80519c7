"""What is fitted on dev data after training: the temperature of probabilities, and thresholds of scores.

Both are chosen on the rows that they are then measured on, so the score there is optimistic; test data tells.
"""

import numpy as np
from numpy.typing import NDArray

_LEAST, _MOST = 0.5, 10.0  # of temperatures: rows that are all right would ask for 0


def fit_temperature(logits: NDArray[np.float64], right: NDArray[np.int64]) -> float:
    """Return the temperature that makes the right labels likeliest (Guo et al., arXiv 1706.04599), from 0.5 to 10.

    logits: [rows, labels], or logarithms of probabilities.   right: [rows].
    """
    logits = logits - logits.max(1, keepdims=True)

    def loss(beta: float) -> float:  # convex in beta = 1 / temperature
        scaled = beta * logits
        return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(right)), right]).mean())

    low, high = 1 / _MOST, 1 / _LEAST
    while high - low > 1e-6:
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, two) if loss(one) <= loss(two) else (one, high)
    return 2 / (low + high)


def best_threshold(scores: NDArray[np.float64], right: NDArray[np.bool_], *, default: float) -> float:
    """Return the threshold with the highest F1: items with a score of at least it are predicted.

    scores, right: [items]. It is half-way between two scores, so that rounding changes nothing; of equal ones the
    nearest to `default`, and `default` itself if it is one of them or nothing is right.
    """
    if not right.any():
        return default
    order = np.argsort(-scores, kind="stable")
    found, hits = scores[order], np.cumsum(right[order])
    last = np.append(found[1:] < found[:-1], True)  # equal scores are predicted together
    f1 = np.where(last, 2 * hits / (np.arange(1, len(found) + 1) + right.sum()), -1)
    below = np.append(found[1:], min(default, found[-1]) - 0.1 * abs(found[-1]) - 1e-6)
    between = np.where((below < default) & (default <= found), default, (below + found) / 2)
    best = between[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - default))])
