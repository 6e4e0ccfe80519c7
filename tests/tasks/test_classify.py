"""Classification: forms by the data, class weights, thresholds, temperature, long texts, and rows that are refused."""

import numpy as np
import pytest
import torch
from toy_tasks import VOCABULARY

from hanmo.errors import ConfigError, DataError
from hanmo.tasks.classify import Classify
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.rows import read_rows
from hanmo.tasks.task import weighted_mean
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)


def task(**changes) -> Classify:
    settings = {"kind": "classify", "form": "single", "labels": ("a", "b", "c"), "head": "linear", "max_length": 16}
    return Classify(TaskConfig(**settings | changes), TOKENIZER)


def settle(*rows, **changes) -> TaskConfig:
    return Classify.settle(TaskConfig(kind="classify", **changes), read_rows(rows))


@pytest.mark.parametrize(
    ("row", "other", "form", "labels"),
    [
        ({"text": "天", "label": "b"}, {"text": "地", "label": "a"}, "single", ("a", "b")),
        ({"text": "天", "labels": ["b", "a"]}, {"text": "地", "labels": []}, "multi", ("a", "b")),
        ({"text": "天", "labels": ["a"]}, {"text": "地", "labels": []}, "multi", ("a",)),
        ({"text": "天", "score": 1}, {"text": "地", "score": 2.5}, "regression", ()),
        ({"a": "天", "b": "地", "label": "b"}, {"a": "地", "b": "天", "label": "a"}, "single", ("a", "b")),
    ],
)
def test_the_data_tells_the_form_and_the_labels(row, other, form, labels):
    config = settle(row, other)
    assert (config.form, config.labels) == (form, labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "天"}, "'label' is missing; expected a string"),
        ({"text": "天", "label": 1}, "'label' is 1; expected a string"),
        ({"text": "天", "label": "z"}, "the label 'z' is not in the configuration, which has a, b"),
        ({"text": " ", "label": "a"}, "'text' is empty"),
        ({"label": "a"}, "'text' is missing"),
    ],
)
def test_a_wrong_row_is_named(row, message):
    with pytest.raises(DataError, match=f"^row 2: {message}"):
        settle({"text": "天", "label": "a"}, row, form="single", labels=("a", "b"))


@pytest.mark.parametrize(
    ("row", "form", "message"),
    [
        ({"text": "天", "labels": "a"}, "multi", "'labels' is 'a'; expected a list"),
        ({"text": "天", "labels": [1]}, "multi", "expected a list of strings"),
        ({"text": "天", "score": True}, "regression", "'score' is True; expected a number"),
        ({"text": "天", "score": float("nan")}, "regression", "'score' is nan; expected a finite number"),
        ({"text": "天", "label": "a"}, "single", "the only label of the training data is .* expected two or more"),
    ],
)
def test_a_wrong_row_of_a_form_is_named(row, form, message):
    with pytest.raises(DataError, match=f"^row 1: .*{message}"):
        settle(row, form=form)


def test_class_weights_make_the_weighted_mean_of_torch():
    weighted = task(options={"class_weights": {"a": 3.0, "c": 0.5}})
    rows = read_rows([{"text": "天地" * length, "label": label} for length, label in ((1, "a"), (2, "b"), (3, "c"))])
    examples = [weighted.encode(row) for row in rows]
    arrays = weighted.collate([(example, example.windows[0]) for example in examples])
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    ours = weighted_mean(weighted.losses(logits, batch), batch["weight"])
    theirs = torch.nn.CrossEntropyLoss(weight=torch.tensor([3.0, 1.0, 0.5]))(logits, torch.tensor([0, 1, 2]))
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_class_weights_of_other_labels_are_refused():
    with pytest.raises(ConfigError, match=r"class_weights is .*; expected labels of the task"):
        task(options={"class_weights": {"z": 1.0}})


def test_windows_of_one_row_share_its_weight():
    one = task()
    example = one.encode(read_rows([{"text": "天" * 40, "label": "b"}])[0])
    arrays = one.collate([(example, window) for window in example.windows])
    assert len(example.windows) == 4
    assert arrays["weight"].tolist() == [0.25] * 4
    assert arrays["label"].tolist() == [1] * 4
    assert arrays["mask"].sum(1).tolist() == [len(window) for window in example.windows]


def test_temperature_changes_probabilities_and_no_label():
    row = read_rows([{"text": "天"}])[0]
    logits = [np.array([1.0, 3.0, 2.0], np.float32)]
    results = [task(temperature=t).decode(task().encode(row), logits) for t in (1.0, 2.0)]
    for t, result in zip((1.0, 2.0), results, strict=True):
        expected = torch.softmax(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64) / t, 0).tolist()
        assert list(result["probabilities"].values()) == pytest.approx(expected, abs=1e-12)
        assert result["label"] == "b"
        assert result["probability"] == result["probabilities"]["b"]


def test_thresholds_choose_the_labels():
    row, logits = read_rows([{"text": "天"}])[0], [np.array([0.1, -0.1, -3.0], np.float32)]

    def labels(**thresholds):
        several = task(form="multi", thresholds=thresholds)
        return several.decode(several.encode(row), logits)["labels"]

    assert labels() == ["a"]
    assert labels(a=0.9) == []
    assert labels(b=0.4, c=0.01) == ["a", "b", "c"]


def test_the_logits_of_a_long_text_are_the_mean_by_length():
    number = task(form="regression", labels=())
    example = number.encode(read_rows([{"text": "天" * 18}])[0])
    lengths = [len(window) for window in example.windows]
    outputs = [np.array([float(place)], np.float32) for place in range(len(lengths))]
    expected = sum(place * length for place, length in enumerate(lengths)) / sum(lengths)
    assert len(lengths) == 2 and number.decode(example, outputs)["score"] == pytest.approx(expected)


def test_scores_of_each_form():
    rows = read_rows([{"label": "a", "labels": ["a"], "score": 1}, {"label": "b", "labels": [], "score": 2}])
    found = [{"label": "a", "labels": ["a", "b"], "score": 0.5}, {"label": "a", "labels": [], "score": 0.7}]
    assert task().measure(rows, found) == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    several = task(form="multi").measure(rows, found)
    assert several == {"micro_f1": pytest.approx(2 / 3), "macro_f1": 0.5, "accuracy": 0.5}
    assert task(form="regression", labels=()).measure(rows, found)["spearman"] == pytest.approx(1)


def test_the_temperature_is_fitted_on_dev_rows_and_changes_no_label():
    one, draw = task(), np.random.default_rng(0)
    logits = draw.normal(size=(60, 3)) * 4
    rows = read_rows([{"text": "天", "label": "abc"[draw.integers(3)]} for _ in logits])
    results = [one.decode(one.encode(rows[0]), [each]) for each in logits]
    config, again = one.calibrate(rows, results)
    assert config.temperature == pytest.approx(10, rel=1e-3)  # labels that have nothing to do with the logits
    expected = [task(temperature=config.temperature).decode(one.encode(rows[0]), [each]) for each in logits]
    for ours, theirs, before in zip(again, expected, results, strict=True):
        assert ours["label"] == theirs["label"] == before["label"]
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-9)
    given = task(temperature=2.0)
    assert given.calibrate(rows, results) == (given.config, results)


def test_thresholds_are_chosen_on_dev_rows():
    several = task(form="multi")
    rows = read_rows([{"text": "天", "labels": ["a", "b"] if place < 2 else []} for place in range(4)])
    logits = [[-1, 1, -1], [-2, 2, -1], [-3, -1, -1], [-4, -2, -1]]
    results = [several.decode(several.encode(rows[0]), [np.array(each, np.float32)]) for each in logits]
    config, again = several.calibrate(rows, results)
    assert [result["labels"] for result in results] == [["b"], ["b"], [], []]
    assert [result["labels"] for result in again] == [["a", "b"], ["a", "b"], [], []]
    assert config.thresholds["b"] == config.thresholds["c"] == 0.5
    assert 1 / (1 + np.exp(3)) < config.thresholds["a"] < 1 / (1 + np.exp(2))
