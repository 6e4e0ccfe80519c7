"""What an evaluation shows: counts of each label, the pairs of a confusion matrix and its picture; runs by folds."""

import random

import pytest

from hanmo.errors import ConfigError, DataError
from hanmo.tasks.report import confused, draw_confusion, scores_by_label
from hanmo.tasks.rows import Row, folds
from hanmo.tasks.scores import Counts


def rows(*data: dict) -> list[Row]:
    return [Row(f"row {number}", each) for number, each in enumerate(data, 1)]


def spans(*found: tuple[int, int, str]) -> dict:
    return {"text": "天地玄黄宇宙", "spans": [{"start": a, "stop": b, "label": label} for a, b, label in found]}


def test_single_labels_are_counted_and_paired():
    true, found = rows({"label": "A"}, {"label": "B"}, {"label": "B"}), [{"label": "A"}, {"label": "A"}, {"label": "B"}]
    assert scores_by_label(true, found) == {"A": Counts(1, 2, 1), "B": Counts(1, 1, 2)}
    assert confused(true, found) == (["A", "B", "B"], ["A", "A", "B"])


def test_several_labels_are_counted_but_have_no_pairs():
    true, found = rows({"labels": ["A", "B"]}, {"labels": []}), [{"labels": ["A"]}, {"labels": ["B"]}]
    assert scores_by_label(true, found) == {"A": Counts(1, 1, 1), "B": Counts(0, 1, 1)}
    with pytest.raises(ConfigError, match="a confusion matrix is of tasks with one label a text, or spans"):
        confused(true, found)


def test_spans_are_paired_by_their_place():
    true = rows(spans((0, 2, "A"), (2, 3, "B"), (4, 5, "A")))
    found = [spans((0, 2, "A"), (2, 3, "A"), (3, 4, "B"))]
    assert scores_by_label(true, found) == {"A": Counts(1, 2, 2), "B": Counts(0, 1, 1)}
    assert sorted(zip(*confused(true, found), strict=True)) == [("A", "A"), ("A", "–"), ("B", "A"), ("–", "B")]


def test_nested_spans_of_one_place_are_paired_label_by_label():
    pairs = confused(rows(spans((0, 2, "A"), (0, 2, "B"))), [spans((0, 2, "B"), (0, 2, "C"))])
    assert sorted(zip(*pairs, strict=True)) == [("A", "C"), ("B", "B")]


@pytest.mark.parametrize(
    ("row", "result"),
    [
        ({"score": 1.0}, {"score": 2.0}),
        ({"words": ["天", "地"]}, {"words": ["天", "地"], **spans((0, 1, "word"), (1, 2, "word"))}),
        (spans((0, 1, "A")), {**spans((0, 1, "entity")), "relations": []}),
    ],
)
def test_what_has_no_labels_of_its_own_has_no_scores_by_label(row, result):
    assert scores_by_label(rows(row), [result]) == {}
    with pytest.raises(ConfigError, match="a confusion matrix is of tasks with"):
        confused(rows(row), [result])


def test_a_confusion_matrix_is_drawn_in_any_script(tmp_path):
    labels = draw_confusion(["体育", "财经", "–"], ["体育", "体育", "财经"], tmp_path / "matrix.png")
    assert labels == ["体育", "财经", "–"]
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_folds_have_every_row_once_and_equal_texts_together(count):
    draw = random.Random(0)
    data = rows(*({"text": draw.choice("天地玄黄宇宙洪荒"), "number": n} for n in range(40)))
    sides = list(folds(data, count, seed=1))
    assert len(sides) == count
    assert sorted(row.data["number"] for _, dev in sides for row in dev) == list(range(40))
    for train, dev in sides:
        assert len(train) + len(dev) == 40 and dev
        assert {row.data["text"] for row in train}.isdisjoint(row.data["text"] for row in dev)
    assert list(folds(data, count, seed=1)) == sides != list(folds(data, count, seed=2))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_folds_without_a_text_each_are_refused(count):
    with pytest.raises(DataError, match=f"{count} folds of 2 different texts; expected from 2 to the number of texts"):
        list(folds(rows({"text": "天"}, {"text": "地"}, {"text": "天"}), count))
