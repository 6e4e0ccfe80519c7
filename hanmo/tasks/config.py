"""What a task is, as data: frozen, checked, JSON both ways. It is saved as task.json beside the weights.

Knows no kind of task; table.py lists these.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hanmo.errors import ConfigError
from hanmo.files import parse_json, read_json
from hanmo.training.args import TrainArgs

TASK_JSON = "task.json"
POOLINGS = ("pooler", "mean", "first", "last")
ATTENTIONS = ("full", "causal")
KEYS = (("text",), ("a", "b"))


@dataclass(frozen=True)
class Score:
    """The best score on held-out data.

    name: of the main score, "accuracy" or "f1".   on: the data it was measured on, a file's name or "held out".
    scores: all scores of that evaluation.
    """

    name: str
    value: float
    on: str
    scores: dict[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The settings of a task. What is left empty is decided by the kind and the training data.

    kind: key of `hanmo.tasks.TASKS`.   form: variant of the kind, such as "multi" of "classify".
    labels: in the order of the head's outputs.   head: name of the kind's head, such as "crf".
    keys: of a row's texts, ("text",) or ("a", "b"), for kinds that learn from either and then refuse the other.
    pooling: how token vectors become one vector, for kinds that need one: "pooler" (the default), "mean", "first" or
        "last" (the default where attention is "causal").
    attention: "full" or "causal" makes an encoder of a model that reads from left to right, such as a GPT-2: its tokens
        see all others, or those before them.   dropout: of the network, in place of the checkpoint's.
    max_length: ids of a window, with the marks; None: the model's positions, at most 512.
    stride: tokens from the start of a window to that of the next; None: three quarters of the window's tokens.
    thresholds: label → probability or score from which it is predicted, where it is not the kind's default.
    temperature: divides logits before they become probabilities.
    options: what only this kind has, as JSON values.   score: best score of the weights beside it.
    """

    kind: str
    form: str = ""
    labels: tuple[str, ...] = ()
    head: str = ""
    keys: tuple[str, ...] = ()
    pooling: str = ""
    attention: str = ""
    dropout: float | None = None
    max_length: int | None = None
    stride: int | None = None
    thresholds: dict[str, float] = field(default_factory=dict, hash=False)
    temperature: float = 1.0
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    score: Score | None = None

    def __post_init__(self) -> None:
        for name in ("kind", "form", "head", "pooling", "attention"):
            _expect(name, getattr(self, name), isinstance(getattr(self, name), str), "a string")
        _expect("kind", self.kind, self.kind != "", "the name of a kind")
        _expect("pooling", self.pooling, self.pooling in ("", *POOLINGS), f"one of {', '.join(POOLINGS)}")
        _expect("attention", self.attention, self.attention in ("", *ATTENTIONS), f"one of {', '.join(ATTENTIONS)}")
        dropout = 0 if self.dropout is None else self.dropout
        _expect("dropout", dropout, is_number(dropout) and 0 <= dropout < 1, "a number from 0 up to 1")
        for name in ("labels", "keys"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _expect("keys", self.keys, self.keys in ((), *KEYS), '["text"] or ["a", "b"]')
        _expect("labels", self.labels, all(isinstance(label, str) and label for label in self.labels), "strings")
        twice = {label for label in self.labels if self.labels.count(label) > 1}
        _expect("labels", self.labels, not twice, "each label once")
        for name in ("max_length", "stride"):
            value = getattr(self, name)
            _expect(name, value, value is None or (type(value) is int and value > 0), "a whole number above 0")
        for label, value in self.thresholds.items():
            _expect(f"threshold of {label!r}", value, is_number(value), "a number")
            _expect("thresholds", label, not self.labels or label in self.labels, "labels of the task")
        _expect(
            "temperature", self.temperature, is_number(self.temperature) and self.temperature > 0, "a number above 0"
        )

    @property
    def pools_by(self) -> str:
        """How token vectors become one vector: `pooling`, or its default."""
        return self.pooling or ("last" if self.attention == "causal" else POOLINGS[0])

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"labels": list(self.labels), "keys": list(self.keys)}

    def to_json(self) -> str:
        """Write the settings as JSON text, one key a line."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the task") -> "TaskConfig":
        """Read what `to_json` wrote. Raises ConfigError for anything else."""
        return cls.from_dict(parse_json(text, where, error=ConfigError, unique=True), where)

    @classmethod
    def read(cls, path: Path) -> "TaskConfig":
        """Read a task.json. Raises ConfigError naming the file, MissingFile."""
        return cls.from_dict(read_json(path, error=ConfigError, unique=True), str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> "TaskConfig":
        """Check JSON values. Raises ConfigError for an unknown or missing key and for a wrong value."""
        values = dict(data)
        try:
            _check_keys(values, cls)
            for key, kind in (("labels", list), ("keys", list), ("thresholds", dict), ("options", dict)):
                _expect(key, values.get(key), isinstance(values.get(key, kind()), kind), f"a JSON {kind.__name__}")
            if values.get("score") is not None:
                score = values["score"]
                _expect("score", score, isinstance(score, dict), "an object")
                _check_keys(score, Score)
                _expect("score", score, is_number(score["value"]), "an object with a number as its value")
                values["score"] = Score(**score)
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class TaskArgs(TrainArgs):
    """The arguments of a training run, with the defaults of fine-tuning; `batch` counts windows."""

    batch: int = 16
    held_out: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


def _check_keys(values: Mapping[str, Any], cls: type[TaskConfig] | type[Score]) -> None:
    known = [field.name for field in fields(cls)]
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"the key {unknown[0]!r} is unknown; known are {', '.join(known)}")
    needed = ["name", "value", "on"] if cls is Score else ["kind"]
    if missing := [name for name in needed if name not in values]:
        raise ConfigError(f"the key {missing[0]!r} is missing")


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number that a float can hold; NaN, infinity and booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _expect(name: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise ConfigError(f"{name} is {str(value)[:200]!r}; expected {expected}")
