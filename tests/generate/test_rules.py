import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hanmo.errors import ConfigError
from hanmo.generate import rules
from hanmo.generate.draw import choose
from hanmo.generate.sampling import PRESETS, Sampling

INF = float("inf")
ROWS = np.array([[2.0, 1.0, 0.0, -1.0, 2.0], [0.5, 0.5, 0.5, 0.5, 0.5]], np.float32)


def kept(logits):
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in rules.to_numpy(logits)]


def test_top_k_keeps_the_k_best_and_the_lower_ids_among_equals():
    assert kept(rules.top_k(ROWS, 1)) == [[0], [0]]
    assert kept(rules.top_k(ROWS, 3)) == [[0, 1, 4], [0, 1, 2]]
    assert kept(rules.top_k(ROWS, 5)) == kept(rules.top_k(ROWS, 99)) == [[0, 1, 2, 3, 4]] * 2


def test_top_p_keeps_or_drops_the_id_that_crosses_p():
    logits = np.log(np.array([[0.5, 0.2, 0.2, 0.1]]))
    assert kept(rules.top_p(logits, 0.6)) == [[0, 1]]
    assert kept(rules.top_p(logits, 0.6, crossing="drop")) == [[0]]
    assert kept(rules.top_p(logits, 0.1)) == kept(rules.top_p(logits, 0.1, crossing="drop")) == [[0]]
    assert kept(rules.top_p(logits, 0.95)) == [[0, 1, 2, 3]]
    assert kept(rules.top_p(logits, 0.95, crossing="drop")) == [[0, 1, 2]]
    assert kept(rules.top_p(logits, 1)) == kept(rules.top_p(logits, 1, crossing="drop")) == [[0, 1, 2, 3]]


def test_top_p_that_is_met_exactly_keeps_no_further_id():
    quarters = np.zeros((1, 4))
    assert kept(rules.top_p(quarters, 0.5)) == [[0, 1]]
    assert kept(rules.top_p(quarters, 0.5, crossing="drop")) == [[0]]  # strictly below p, as the original has it


@pytest.mark.parametrize("p", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_equal_ids_that_sum_to_p_but_for_rounding_meet_it_on_every_library(p):
    tenths = np.full((1, 10), 1.7, np.float32)
    for logits in (tenths, torch.from_numpy(tenths)):
        assert len(kept(rules.top_p(logits, p))[0]) == round(p * 10)
        assert len(kept(rules.top_p(logits, p, crossing="drop"))[0]) == max(round(p * 10) - 1, 1)


def test_temperature_sharpens_and_flattens_without_overflow():
    half = rules.softmax(rules.temperature(ROWS, 0.5))
    assert np.allclose(half, rules.softmax(ROWS) ** 2 / (rules.softmax(ROWS) ** 2).sum(-1, keepdims=True))
    assert kept(rules.temperature(ROWS * 9, 1e-300)) == [[0, 4], [0, 1, 2, 3, 4]]
    coldest = rules.softmax(rules.temperature(ROWS.astype(np.float16), 1e-30))
    assert np.allclose(coldest, [[0.5, 0, 0, 0, 0.5], [0.2] * 5])
    ruled_out = np.full((1, 3), -INF, np.float32)
    assert rules.temperature(ruled_out, 2.0).tolist() == ruled_out.tolist()


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores():
    result = rules.repetition_penalty(ROWS, [[0, 3, 3], []], 2.0)
    assert result.tolist() == [[1.0, 1.0, 0.0, -2.0, 2.0], [0.5] * 5]


def test_no_repeat_ngram_masks_what_would_complete_an_old_ngram():
    history = [[1, 2, 3, 1, 2], [4]]
    assert kept(rules.no_repeat_ngram(ROWS, history, 3)) == [[0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert kept(rules.no_repeat_ngram(ROWS, history, 2)) == [[0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert kept(rules.no_repeat_ngram(ROWS, history, 1)) == [[0, 4], [0, 1, 2, 3]]
    assert kept(rules.no_repeat_ngram(ROWS, [[], []], 2)) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("logits", [ROWS, torch.from_numpy(ROWS)])
def test_a_bias_is_added_before_the_penalties(logits):
    expected = ROWS + np.array([0, -3, 0, 0, 2], np.float32)
    assert np.array_equal(rules.add_bias(logits, [(1, -3.0), (4, 2.0)]), expected)
    found = Sampling(bias=((1, -3.0), (4, 2.0)), repetition_penalty=2.0).apply(logits, [[1], [4]])
    expected[0, 1] *= 2  # negative now
    expected[1, 4] /= 2
    assert np.array_equal(found, expected)


def test_banned_and_allowed_ids_are_counterparts():
    assert kept(rules.banned(ROWS, [0, 2])) == kept(rules.allowed(ROWS, [1, 3, 4])) == [[1, 3, 4]] * 2


def test_rules_leave_their_argument_as_it_was():
    logits = ROWS.copy()
    for result in (rules.top_k(logits, 9), rules.top_p(logits, 1), rules.temperature(logits, 1)):
        result[...] = 7
    Sampling(temperature=0.5, top_k=2, top_p=0.5, banned=(1,), bias=((3, 1.0),), repetition_penalty=2).apply(
        logits, [[1], [2]]
    )
    assert logits.tolist() == ROWS.tolist()


def test_nan_survives_every_rule_and_is_left_for_the_draw_to_report():
    logits = ROWS.copy()
    logits[0, 3] = np.nan
    for setting in (Sampling(top_k=1), Sampling(top_p=0.5), Sampling(temperature=0), Sampling(temperature=0.1)):
        assert np.isnan(setting.apply(logits, [[], []])[0]).any(), setting


SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 0.3, 1.0, 1.7]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1),
    crossing=st.sampled_from(["keep", "drop"]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
    no_repeat_ngram=st.none() | st.integers(1, 3),
    banned=st.sampled_from([(), (0,), (3, 5)]),
    allowed=st.none() | st.just((0, 1, 2, 3, 4, 8, 9)),
)
LOGITS = hnp.arrays(np.float32, (3, 12), elements=st.floats(-30, 30, width=16))
HISTORY = st.lists(st.lists(st.integers(0, 11), max_size=8), min_size=3, max_size=3)


@settings(max_examples=150, deadline=None)
@given(SETTINGS, LOGITS, HISTORY)
def test_numpy_and_torch_give_the_same_result(sampling, logits, history):
    by_numpy = sampling.apply(logits, history)
    by_torch = sampling.apply(torch.from_numpy(logits.copy()), history)
    assert isinstance(by_torch, torch.Tensor)
    assert by_numpy.dtype == np.float32 and by_torch.dtype == torch.float32
    assert np.array_equal(by_numpy, by_torch.numpy())


@pytest.mark.parametrize("spread", [0.1, 8.0])
@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("change", [{"top_k": 40}, {"top_p": 0.9}, {"top_k": 200, "top_p": 0.8}])
def test_numpy_stops_early_in_a_large_vocabulary_and_chooses_what_torch_does(spread, equals, change):
    random = np.random.default_rng(4)
    logits = (random.standard_normal((5, 6000)) * spread).astype(np.float32)
    logits = np.round(logits, 1) if equals else logits
    logits[:, 100:900] = -INF
    sampling = Sampling(temperature=0.9, **change)
    by_numpy, by_torch = sampling.apply(logits, [[]] * 5), sampling.apply(torch.from_numpy(logits), [[]] * 5)
    assert np.array_equal(by_numpy, by_torch.numpy())
    for number in (0.0, 0.3, 0.999, 1 - 2**-53):
        assert choose(by_numpy, [number] * 5).tolist() == choose(by_torch, [number] * 5).tolist()


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.floats(0.01, 1), st.integers(1, 14))
def test_top_p_and_top_k_keep_the_smallest_sets_that_are_defined(logits, p, k):
    for row, best in zip(logits, kept(rules.top_k(logits, k)), strict=True):
        order = sorted(range(12), key=lambda id: (-row[id], id))
        assert best == sorted(order[:k])
    for row, stay, drop in zip(
        rules.softmax(logits), kept(rules.top_p(logits, p)), kept(rules.top_p(logits, p, crossing="drop")), strict=True
    ):
        assert p == 1 or (set(drop) <= set(stay) and len(stay) - len(drop) in (0, 1))
        assert row[stay].sum() >= p - 1e-9
        assert len(drop) == 1 or p == 1 or row[drop].sum() < p + 1e-9  # summed in another order


def test_half_precision_of_torch_is_kept():
    logits = torch.from_numpy(ROWS).to(torch.bfloat16)
    result = Sampling(temperature=0.7, top_k=3, top_p=0.9, repetition_penalty=1.1).apply(logits, [[1], [2]])
    assert result.dtype == torch.bfloat16 and kept(result.float())[1] == [0, 1, 3]


def test_the_original_demo_preset_allows_what_the_original_drew(data):
    """20,000 draws a row of gpt2-ml's own samplers: what it can draw are the ids it drew at least once."""
    cases = np.load(data / "goldens" / "gpt2_ml_original" / "cases.npz")
    logits, counts, p = cases["sampler/in/logits"], cases["sampler/out/topp_counts_20000"], cases["sampler/in/p"]
    assert logits.shape == (4, 12) and counts.sum(axis=1).tolist() == [20000] * 4
    demo = PRESETS["gpt2-ml-demo"]
    assert (demo.top_p, demo.crossing, demo.banned) == (0.95, "drop", (0,))
    for row in range(4):
        sampling = Sampling(top_p=float(p[row]), crossing=demo.crossing, banned=demo.banned)
        result = sampling.apply(logits[row : row + 1], [[]])
        drawn = np.flatnonzero(counts[row])
        assert kept(result) == [drawn.tolist()]
        assert np.abs(rules.softmax(result)[0] - counts[row] / 20000).max() < 0.011  # 3 standard deviations
    assert kept(demo.apply(logits[3:], [[]])) == [np.flatnonzero(counts[3]).tolist()]


def test_top_k_after_the_ban_allows_what_the_original_drew(data):
    cases = np.load(data / "goldens" / "gpt2_ml_original" / "cases.npz")
    logits, drawings = cases["sampler/in/logits"], cases["sampler/out/topk_counts_20000"]
    assert len(drawings) == 4
    for row, counts in enumerate(drawings):
        drawn = np.flatnonzero(counts).tolist()
        result = Sampling(top_k=len(drawn), banned=(0,)).apply(logits[row : row + 1], [[]])
        assert kept(result) == [drawn]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": 0}, "top_k is 0; expected a whole number of 1 or more"),
        ({"top_k": 2.5}, "top_k is 2.5; expected a whole number of 1 or more"),
        ({"top_p": 0}, "top_p is 0; expected above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01; expected above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p is nan; expected above 0 and at most 1"),
        ({"temperature": -0.5}, "temperature is -0.5; expected above 0 and a finite number"),
        ({"temperature": INF}, "temperature is inf; expected above 0"),
        ({"temperature": "warm"}, "temperature is 'warm'; expected above 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected above 0"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram is 0; expected a whole number of 1 or more"),
        ({"crossing": "both"}, "top_p's crossing is 'both'; expected 'keep' or 'drop'"),
        ({"bias": ((3, INF),)}, "the bias of id 3 is inf; expected above -inf and a finite number"),
        ({"allowed": ()}, r"allowed is \(\) and banned \(\): no id is left"),
        ({"allowed": (3,), "banned": (3, 4)}, r"allowed is \(3,\) and banned \(3, 4\): no id is left"),
    ],
)
def test_a_setting_outside_its_range_is_named_with_value_and_range(setting, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**setting)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.temperature(ROWS, 0), "temperature is 0; expected above 0"),
        (lambda: rules.top_k(ROWS, 0), "top_k is 0"),
        (lambda: rules.top_p(ROWS, 0.0), "top_p is 0.0"),
        (lambda: rules.top_p(ROWS, 0.5, crossing="no"), "crossing is 'no'"),
        (lambda: rules.repetition_penalty(ROWS, [[], []], -1), "repetition_penalty is -1"),
        (lambda: rules.no_repeat_ngram(ROWS, [[], []], 0), "no_repeat_ngram is 0"),
        (lambda: rules.add_bias(ROWS, [(5, 1.0)]), "bias holds id 5; the vocabulary has ids 0 to 4"),
        (lambda: rules.banned(ROWS, [5]), "banned holds id 5; the vocabulary has ids 0 to 4"),
        (lambda: rules.allowed(ROWS, [-1]), "allowed holds id -1; the vocabulary has ids 0 to 4"),
        (lambda: rules.allowed(ROWS, []), "allowed holds no id"),
    ],
)
def test_a_rule_names_the_argument_it_cannot_take(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
