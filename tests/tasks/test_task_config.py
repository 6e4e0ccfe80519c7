"""task.json: what is written is read back, and what cannot be right is refused by name."""

import json

import pytest

from hanmo.errors import ConfigError, MissingFile
from hanmo.tasks import TaskConfig
from hanmo.tasks.config import Score
from hanmo.tasks.table import task_class

FULL = TaskConfig(
    kind="classify", form="multi", labels=("甲", "乙"), head="linear", keys=("a", "b"), pooling="mean",
    max_length=128, stride=64,
    thresholds={"甲": 0.3}, temperature=1.5, options={"class_weights": {"乙": 2.0}},
    score=Score("micro_f1", 0.9, "dev.jsonl", {"micro_f1": 0.9, "macro_f1": 0.8}),
)  # fmt: skip


@pytest.mark.parametrize("config", [FULL, TaskConfig(kind="tag")])
def test_what_is_written_is_read_back(config, tmp_path):
    assert TaskConfig.from_json(config.to_json()) == config
    (tmp_path / "task.json").write_text(config.to_json(), "utf-8")
    assert TaskConfig.read(tmp_path / "task.json") == config
    assert "甲" in config.to_json() or not config.labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": ""}, "kind is ''; expected the name of a kind"),
        ({"kind": 3}, "kind is '3'; expected a string"),
        ({"lables": []}, "the key 'lables' is unknown; known are kind, form, labels"),
        ({"labels": "ab"}, "labels is 'ab'; expected a JSON list"),
        ({"labels": ["a", "a"]}, "labels is .* expected each label once"),
        ({"labels": ["a", 1]}, "labels is .* expected strings"),
        ({"keys": "text"}, "keys is 'text'; expected a JSON list"),
        ({"keys": ["b", "a"]}, r'keys is .*; expected \["text"\] or \["a", "b"\]'),
        ({"pooling": "max"}, "pooling is 'max'; expected one of pooler, mean, first"),
        ({"max_length": 0}, "max_length is '0'; expected a whole number above 0"),
        ({"stride": 1.5}, "stride is '1.5'; expected a whole number above 0"),
        ({"temperature": 0}, "temperature is '0'; expected a number above 0"),
        ({"temperature": "hot"}, "temperature is 'hot'; expected a number above 0"),
        ({"thresholds": {"丙": 0.5}}, "thresholds is '丙'; expected labels of the task"),
        ({"thresholds": {"甲": None}}, "threshold of '甲' is 'None'; expected a number"),
        ({"options": []}, "options is .* expected a JSON dict"),
        ({"score": 1}, "score is '1'; expected an object"),
        ({"score": {"name": "f1"}}, "the key 'value' is missing"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    data = json.loads(FULL.to_json()) | change
    with pytest.raises(ConfigError, match=f"^my task: {message}"):
        TaskConfig.from_json(json.dumps(data), "my task")


def test_a_kind_is_needed():
    with pytest.raises(ConfigError, match="the key 'kind' is missing"):
        TaskConfig.from_json("{}")


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(ConfigError, match="kind is 'clasify'; expected one of classify"):
        task_class("clasify")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(MissingFile, match=r"task\.json is missing"):
        TaskConfig.read(tmp_path / "task.json")
