"""Classify texts or pairs of texts: one label, several labels, or a number.

    {"text": …, "label": "体育"}         form "single"         → {"label", "probability", "probabilities"}
    {"text": …, "labels": ["A", "B"]}    form "multi"          → {"labels", "probabilities"}
    {"text": …, "score": 3.5}            form "regression"     → {"score"}

"a" and "b" in place of "text" make a pair. The logits of a long text are the mean of its windows', by their length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.model import Output
from hanmo.nn.linear import Linear
from hanmo.tasks.calibration import best_threshold, fit_temperature
from hanmo.tasks.config import KEYS, TaskConfig, is_number
from hanmo.tasks.divergence import Logits
from hanmo.tasks.rows import Row
from hanmo.tasks.scores import accuracy, label_counts, macro_f1, micro_f1, pearson, spearman
from hanmo.tasks.task import Arrays, Batch, Example, Result, Task
from hanmo.tasks.windows import Window
from hanmo.tokenizers.protocol import Tokenizer

_KEYS = {"label": "single", "labels": "multi", "score": "regression"}


def pool(output: Output, mask: Tensor, how: str) -> Tensor:
    """Return [b, hidden_size]: what the pooler made, the mean of the real tokens, the first or the last of them.

    mask: [b, n], True where a token is real.
    """
    if how == "mean":
        weight = mask[..., None].to(output.hidden.dtype)
        return (output.hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
    if how == "first":
        return output.hidden[:, 0]
    if how == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(1)
        return output.hidden[torch.arange(len(last), device=mask.device), last]
    if output.pooled is None:
        raise ConfigError("pooling is 'pooler', and the network has none; use 'mean', 'first' or 'last'")
    return output.pooled


class LinearHead(nn.Module):
    """Dropout and a linear layer on one vector of the text."""

    def __init__(self, config: ModelConfig, outputs: int, *, pooling: str) -> None:
        super().__init__()
        self.pooling, self.dropout = pooling, config.main.dropout
        self.linear = Linear(config.main.hidden_size, outputs)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """Return logits [windows, outputs]."""
        vector = pool(output, batch["mask"], self.pooling)
        return self.linear(F.dropout(vector, self.dropout, self.training))


class Classify(Task):
    """kind "classify"."""

    forms: ClassVar[tuple[str, ...]] = ("single", "multi", "regression")
    pooled = True
    paired = True
    options: ClassVar[dict[str, tuple[str, ...]]] = {"class_weights": ("single", "multi")}

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.main_score = {"single": "accuracy", "multi": "micro_f1", "regression": "spearman"}[config.form]
        self.weights = self.class_weights(config.labels)

    @classmethod
    def check_config(cls, config: TaskConfig) -> None:
        super().check_config(config)
        if config.form == "regression" and config.labels:
            raise ConfigError(f"labels is {list(config.labels)}; form 'regression' predicts a number, leave labels out")

    @classmethod
    def settle(cls, config: TaskConfig, rows: Sequence[Row]) -> TaskConfig:
        if not config.form:
            key = next((key for key in _KEYS if key in rows[0].data), "label")
            config = replace(config, form=_KEYS[key])
        keys = config.keys or KEYS[len(cls.texts(rows[0])) - 1]
        config = super().settle(replace(config, keys=keys), rows)
        if config.form != "regression" and len(config.labels) < 2 - (config.form == "multi"):
            least = "a label" if config.form == "multi" else "two or more"
            found = (
                f"the only label of the training data is {config.labels[0]!r}"
                if config.labels
                else "no row has a label"
            )
            raise rows[0].error(f"{found}; expected {least}")
        return config

    @classmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        cls._check_texts(row, config)
        if config.form == "single":
            row.get("label", str)
        elif config.form == "regression":
            if not is_number(row.get("score", (int, float))):
                raise row.error(f"'score' is {str(row.data['score'])[:100]}; expected a finite number")
        elif not all(isinstance(label, str) for label in row.get("labels", list)):
            raise row.error(f"'labels' is {str(row.data['labels'])[:100]}; expected a list of strings")

    @classmethod
    def _check_texts(cls, row: Row, config: TaskConfig) -> None:
        texts = cls.texts(row)
        if config.keys and len(texts) != len(config.keys):
            found, wanted = ("a text", "pairs, 'a' and 'b'") if len(config.keys) == 2 else ("a pair", "single texts")
            raise row.error(f"it is {found}; the task is one of {wanted}")

    def encode(self, row: Row) -> Example:
        self._check_texts(row, self.config)
        return super().encode(row)

    @classmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        if config.form == "regression":
            return ()
        return [row.data["label"]] if config.form == "single" else row.data["labels"]

    def target(self, example: Example, window: Window) -> Arrays:
        if self.config.form == "regression":
            return {"score": np.array(example.row.data["score"], np.float32)}
        numbers = [self.number[label] for label in self.labels_of(example.row, self.config)]
        if self.config.form == "single":
            weight = self.weights[numbers[0]] / len(example.windows)
            return {"label": np.array(numbers[0]), "weight": np.array(weight)}
        chosen = np.zeros(len(self.config.labels), np.float32)
        chosen[numbers] = 1
        return {"labels": chosen}

    def head(self, config: ModelConfig) -> LinearHead:
        return LinearHead(config, len(self.config.labels) or 1, pooling=self.pooling)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        logits = outputs.float()
        if self.config.form == "single":
            return F.cross_entropy(logits, batch["label"], reduction="none")
        if self.config.form == "regression":
            return F.mse_loss(logits[:, 0], batch["score"], reduction="none")
        weights = torch.tensor(self.weights, device=logits.device)
        return (F.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none") * weights).mean(-1)

    def logits(self, outputs: Tensor, batch: Batch) -> Sequence[Logits]:
        kinds = {"single": "categorical", "multi": "bernoulli", "regression": "normal"}
        return [Logits(outputs, kinds[self.config.form])]

    def decode(self, example: Example, outputs: Sequence[NDArray[np.float32]]) -> Result:
        logits = np.average(outputs, axis=0, weights=[len(window) for window in example.windows]).astype(np.float64)
        return {"score": float(logits[0])} if self.config.form == "regression" else _result(self.config, logits)

    def calibrate(self, rows: Sequence[Row], results: Sequence[Result]) -> tuple[TaskConfig, Sequence[Result]]:
        config = self.config
        if config.form == "regression" or config.temperature != 1 or config.thresholds:
            return config, results
        odds = np.array([[result["probabilities"][label] for label in config.labels] for result in results])
        odds = np.clip(odds, 1e-300, 1 - 1e-16)
        if config.form == "single":
            logits = np.log(odds)
            right = np.array([self.number[row.data["label"]] for row in rows])
            config = replace(config, temperature=fit_temperature(logits, right))
        else:
            logits = np.log(odds / (1 - odds))
            right = np.array([[label in row.data["labels"] for label in config.labels] for row in rows])
            chosen = [best_threshold(*columns, default=0.5) for columns in zip(odds.T, right.T, strict=True)]
            config = replace(config, thresholds=dict(zip(config.labels, chosen, strict=True)))
        return config, [_result(config, each) for each in logits]

    def measure(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
        def column(key: str) -> tuple[list[Any], list[Any]]:
            return [row.data[key] for row in rows], [result[key] for result in results]

        if self.config.form == "regression":
            true, found = column("score")
            return {"spearman": spearman(true, found), "pearson": pearson(true, found)}
        if self.config.form == "single":
            labels = column("label")
            counts = label_counts(*([[label] for label in side] for side in labels))
            return {"accuracy": accuracy(*labels), "macro_f1": macro_f1(counts)}
        several = column("labels")
        counts = label_counts(*several)
        exact = accuracy(*([frozenset(each) for each in side] for side in several))
        return {"micro_f1": micro_f1(counts), "macro_f1": macro_f1(counts), "accuracy": exact}


def _result(config: TaskConfig, logits: NDArray[np.float64]) -> Result:
    """Make the result of one row from its logits [labels]."""
    scaled = logits / config.temperature
    if config.form == "multi":
        odds = dict(zip(config.labels, (1 / (1 + np.exp(-scaled))).tolist(), strict=True))
        return {"labels": [k for k, p in odds.items() if p >= config.thresholds.get(k, 0.5)], "probabilities": odds}
    exps = np.exp(scaled - scaled.max())
    odds = dict(zip(config.labels, (exps / exps.sum()).tolist(), strict=True))
    best = max(odds, key=odds.__getitem__)
    return {"label": best, "probability": odds[best], "probabilities": odds}
