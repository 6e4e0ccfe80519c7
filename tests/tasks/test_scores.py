"""Scores equal scikit-learn's and SciPy's where these define them, and are 0 where nothing is right."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.tasks.scores import (
    Counts,
    accuracy,
    answer_scores,
    confusion,
    count_sets,
    label_counts,
    macro_f1,
    micro_f1,
    pearson,
    set_scores,
    spearman,
)


def single(labels):
    return [[label] for label in labels]


def test_f1_of_labels_by_hand():
    true, found = "aabbbc", "ababbb"
    counts = label_counts(single(true), single(found))
    assert counts == {"a": Counts(1, 2, 2), "b": Counts(2, 4, 3), "c": Counts(0, 0, 1)}
    assert macro_f1(counts) == pytest.approx((1 / 2 + 4 / 7 + 0) / 3)
    assert micro_f1(counts) == accuracy(true, found) == 0.5


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd"))), min_size=1))
def test_micro_f1_counts_labels_as_items(rows):
    true, found = [row[0] for row in rows], [row[1] for row in rows]
    assert micro_f1(label_counts(true, found)) == pytest.approx(count_sets(true, found).f1)


def test_entities_count_only_if_all_is_equal():
    true = [[(0, 2, "人"), (3, 5, "地")], [(1, 2, "人")], []]
    found = [[(0, 2, "人"), (3, 4, "地")], [(1, 2, "地")], [(0, 1, "人")]]
    assert count_sets(true, found) == Counts(1, 4, 3)
    assert set_scores(true, found) == {"f1": 2 / 7, "precision": 1 / 4, "recall": 1 / 3}


def test_nothing_found_gives_zero():
    empty = [[], []]
    assert set_scores(empty, empty) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert set_scores([[(0, 1, "人")]], [[]])["f1"] == 0.0
    assert accuracy([], []) == macro_f1({}) == spearman([], []) == pearson([1.0], [2.0]) == 0.0


def test_rank_correlation_shares_ranks_of_equal_values():
    true, found = [1.0, 2.0, 2.0, 4.0, 5.0], [0.1, 0.2, 0.3, 0.3, 0.25]
    # ranks 0 1.5 1.5 3 4 and 0 1 3.5 3.5 2; differences 0 .5 2 .5 2
    ours, theirs = [0, 1.5, 1.5, 3, 4], [0, 1, 3.5, 3.5, 2]
    assert spearman(true, found) == pytest.approx(pearson(ours, theirs))
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0


def test_correlations_equal_those_of_scipy():
    from scipy import stats

    true = [math.sin(n * 7) for n in range(50)]
    found = [round(math.sin(n * 7 + 0.4), 1) for n in range(50)]
    assert spearman(true, found) == pytest.approx(stats.spearmanr(true, found).statistic, abs=1e-12)
    assert pearson(true, found) == pytest.approx(stats.pearsonr(true, found).statistic, abs=1e-12)


def test_f1_equals_that_of_scikit_learn():
    from sklearn import metrics

    true = [str(n * n % 7) for n in range(90)]
    found = [str(n * n % 7 if n % 3 else n % 5) for n in range(90)]
    counts = label_counts(single(true), single(found))
    assert macro_f1(counts) == pytest.approx(metrics.f1_score(true, found, average="macro"), abs=1e-12)
    assert micro_f1(counts) == pytest.approx(metrics.f1_score(true, found, average="micro"), abs=1e-12)
    labels = sorted(set(true))
    assert confusion(true, found, labels) == metrics.confusion_matrix(true, found, labels=labels).tolist()


def test_answers_score_by_characters():
    assert answer_scores([["北京"], ["上海", "上海市"]], ["北京", "上海市区"]) == {
        "exact_match": 0.5,
        "f1": pytest.approx((1 + 6 / 7) / 2),
    }
    assert answer_scores([[]], [""]) == {"exact_match": 1.0, "f1": 1.0}
    assert answer_scores([[]], ["北京"]) == {"exact_match": 0.0, "f1": 0.0}


def test_confusion_has_a_row_for_each_true_label():
    assert confusion("aab", "abb", "ab") == [[1, 1], [0, 1]]
