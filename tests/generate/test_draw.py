import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hanmo.errors import CheckpointError, ConfigError
from hanmo.generate.draw import check_scores, check_seed, checked, choose, fresh_seed, uniform

INF = float("inf")
RECORDED = [0.8720734548204873, 0.0828426870273763, 0.8824668302545412, 0.9602215350574743]


def draw(logits, numbers):
    return checked(choose(logits, numbers).tolist(), logits.shape[-1])


def test_numbers_are_the_same_on_every_machine_and_version():
    assert [uniform(7, 0, 0), uniform(7, 0, 1), uniform(7, 1, 0), uniform(2**64 - 1, 2, 3)] == RECORDED


def test_numbers_differ_by_seed_sample_and_step_and_fill_the_interval_evenly():
    numbers = [uniform(seed, sample, step) for seed in range(10) for sample in range(10) for step in range(20)]
    assert len(set(numbers)) == 2000
    assert 0 <= min(numbers) and max(numbers) < 1
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square of 9 degrees, one in a thousand


def test_an_id_is_drawn_as_often_as_it_is_likely():
    probabilities = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(divide="ignore"):
        logits = np.log(np.tile(probabilities, (4000, 1)))
    counts = np.bincount(draw(logits, [uniform(3, 0, step) for step in range(4000)]), minlength=4)
    assert counts[1] == 0
    assert np.abs(counts / 4000 - probabilities).max() < 0.025


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_the_ends_of_the_interval_never_choose_an_impossible_id(convert):
    logits = np.array([[-INF, 1.0, -INF, 0.0, -INF]] * 3, np.float32)
    assert draw(convert(logits), [0.0, 1 - 2**-53, 0.999999999999]) == [1, 3, 3]
    assert draw(convert(logits)[:1], [1.0]) == [1]  # what rounding could give: the likeliest id, never one past the end


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 9), elements=st.floats(-50, 50, width=32)),
    st.lists(st.integers(0, 2**53 - 1), min_size=4, max_size=4),
)
def test_rows_are_drawn_alike_alone_in_company_and_on_torch(logits, bits):
    numbers = [bit * 2.0**-53 for bit in bits]
    together = draw(logits, numbers)
    assert together == [draw(logits[row : row + 1], numbers[row : row + 1])[0] for row in range(4)]
    assert together == draw(logits[::-1], numbers[::-1])[::-1]
    assert together == draw(torch.from_numpy(logits), numbers)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_damaged_scores_are_one_clear_error(convert):
    with pytest.raises(
        CheckpointError, match="3 of the model's 3 scores for the next id are NaN or infinite; its weights"
    ):
        draw(convert(np.full((1, 3), np.nan, np.float32)), [0.5])
    with pytest.raises(CheckpointError, match="1 of the model's 3 scores"):
        draw(convert(np.array([[0, 1, 2], [0, np.nan, 1]], np.float32)), [0.5, 0.5])
    with pytest.raises(CheckpointError, match="1 of the model's 2 scores"):
        draw(convert(np.array([[0, INF]], np.float32)), [0.5])
    check_scores(convert(np.array([[0, -INF]], np.float32)))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_rules_that_leave_nothing_are_named_as_the_cause():
    with pytest.raises(ConfigError, match="the rules leave none of 3 ids"):
        draw(np.full((1, 3), -INF), [0.5])


def test_seeds_have_a_range_and_fresh_ones_are_in_it():
    check_seed(0)
    check_seed(2**64 - 1)
    check_seed(fresh_seed())
    for seed in (-1, 2**64, 1.5, None):
        with pytest.raises(ConfigError, match=f"seed is {seed}; expected a whole number from 0"):
            check_seed(seed)


def test_a_few_ids_among_many_are_drawn_as_among_themselves():
    logits = np.full((3, 4000), -INF, np.float32)
    logits[:, [7, 900, 3999]] = [[0.5, 1.0, 0.2], [-INF, -INF, 3.0], [2.0, -INF, 1.0]]
    for number in (0.0, 0.4, 0.9):
        among = draw(logits[:, [7, 900, 3999]], [number] * 3)
        assert draw(logits, [number] * 3) == [[7, 900, 3999][id] for id in among]
    logits[1, 3999] = np.nan
    assert choose(logits, [0.5] * 3).tolist()[1] == -2
    logits[1, 3999] = -INF
    assert choose(logits, [0.5] * 3).tolist()[1] == -1
