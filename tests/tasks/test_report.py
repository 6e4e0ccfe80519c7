"""What an evaluation shows: counts of each label, the pairs of a confusion matrix and its picture; runs by folds."""

import random

import pytest
from toy_tasks import VOCABULARY

from hanmo.errors import ConfigError, DataError
from hanmo.tasks import TaskConfig
from hanmo.tasks.classify import Classify
from hanmo.tasks.plots import Ranked, draw_confusion, draw_plots, precision_recall, ranked, reliability
from hanmo.tasks.relate import Relate
from hanmo.tasks.report import confused, scores_by_label
from hanmo.tasks.rows import Row, folds
from hanmo.tasks.scores import Counts
from hanmo.tasks.spans import Spans
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)


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


SINGLE = Classify(TaskConfig(kind="classify", form="single", labels=("A", "B"), head="linear"), TOKENIZER)
ODDS = [{"label": "B" if b > 0.5 else "A", "probabilities": {"A": 1 - b, "B": b}} for b in (0.9, 0.8, 0.3, 0.15)]


def test_precision_and_recall_follow_the_scores():
    found = ranked(SINGLE, rows({"label": "B"}, {"label": "A"}, {"label": "B"}, {"label": "A"}), ODDS)
    assert found["B"] == Ranked([0.9, 0.8, 0.3, 0.15], [True, False, True, False], 2)
    recall, precision, average = precision_recall(found["B"])
    assert recall.tolist() == [0.5, 0.5, 1, 1] and precision.tolist() == [1, 0.5, pytest.approx(2 / 3), 0.5]
    assert average == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    equal = precision_recall(Ranked([0.5, 0.5, 0.2], [True, False, True], 4))
    assert equal[0].tolist() == [0.25, 0.5] and equal[1].tolist() == [0.5, pytest.approx(2 / 3)]
    assert precision_recall(Ranked([], [], 3))[2] == 0


def test_spans_and_relations_are_ranked_by_their_scores():
    task = Spans(TaskConfig(kind="spans", labels=("A", "B"), head="global_pointer"), TOKENIZER)
    found = spans((0, 2, "A"), (2, 3, "A"))
    for span, score in zip(found["spans"], (3.0, 1.0), strict=True):
        span["score"] = score
    assert ranked(task, rows(spans((0, 2, "A"), (4, 5, "A"))), [found]) == {"A": Ranked([3.0, 1.0], [True, False], 2)}
    relate = Relate(TaskConfig(kind="relate", labels=("R",), head="gplinker"), TOKENIZER)
    true = rows({"text": "天地玄黄宇宙", "triples": [["天地", "R", "黄"]]})
    relations = [{"subject": 0, "object": 1, "label": "R", "score": 2.0}]
    result = {"spans": spans((0, 2, "e"), (3, 4, "e"))["spans"], "relations": relations}
    assert ranked(relate, true, [result]) == {"R": Ranked([2.0], [True], 1)}


def test_reliability_compares_probabilities_with_what_is_right():
    odds, right, counts = reliability(rows({"label": "B"}, {"label": "A"}, {"label": "B"}, {"label": "A"}), ODDS)
    assert counts.tolist() == [0] * 7 + [1, 2, 1]
    assert odds[7:].tolist() == pytest.approx([0.7, 0.825, 0.9]) and right[7:].tolist() == [0, 0.5, 1]


def test_the_pictures_that_results_allow_are_drawn(tmp_path):
    true = rows({"label": "B"}, {"label": "A"}, {"label": "B"}, {"label": "A"})
    drawn = draw_plots(SINGLE, true, ODDS, tmp_path / "all")
    assert [path.name for path in drawn] == ["confusion.png", "reliability.png", "precision_recall.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    number = Classify(TaskConfig(kind="classify", form="regression", head="linear"), TOKENIZER)
    assert draw_plots(number, rows({"score": 1.0}), [{"score": 2.0}], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


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
