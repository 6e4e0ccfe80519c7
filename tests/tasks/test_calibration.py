"""The temperature and the thresholds are the best there are, by trying others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.tasks.calibration import best_threshold, fit_temperature
from hanmo.tasks.scores import Counts


def nll(logits, right, temperature):
    scaled = logits / temperature
    return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(right)), right]).mean())


@pytest.mark.parametrize("true", [0.7, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(true):
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(4000, 4)) * 3
    odds = np.exp(logits / true)
    right = np.array([draw.choice(4, p=row / row.sum()) for row in odds])
    found = fit_temperature(logits, right)
    assert found == pytest.approx(true, rel=0.1)
    assert all(nll(logits, right, found) <= nll(logits, right, found * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_rows_that_are_all_right_give_the_least_temperature():
    assert fit_temperature(np.eye(3), np.arange(3)) == pytest.approx(0.5, abs=1e-4)
    assert fit_temperature(np.eye(3), np.array([1, 2, 0])) == pytest.approx(10, rel=1e-3)


def f1(scores, right, threshold):
    found = scores >= threshold
    return Counts(int((found & right).sum()), int(found.sum()), int(right.sum())).f1


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1), st.sampled_from([0.0, 0.5, 1.0]))
def test_no_other_threshold_has_a_higher_f1(pairs, default):
    scores, right = np.array([pair[0] / 20 for pair in pairs]), np.array([pair[1] for pair in pairs])
    found = best_threshold(scores, right, default=default)
    best = f1(scores, right, found)
    assert best >= max(f1(scores, right, other) for other in np.arange(-1, 44) / 40)
    assert best == f1(scores + 1e-7, right, found) == f1(scores - 1e-7, right, found) or found == default
    if not right.any() or f1(scores, right, default) == best:
        assert found == default
