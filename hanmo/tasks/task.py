"""What a kind of task defines: its data, its head, its loss, its results and its scores.

rows ─ check ─► settle ─► config                          (labels and form by the training data)
row ─ encode ─► Example ─ target ─ collate ─► batch       (one row of a batch is one window)
batch ─ forward ─► outputs ─┬─ losses ─► [windows]        (training)
                            └─ infer ─► decode ─► result ─ measure ─► scores
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, DataError
from hanmo.model import Model, Output
from hanmo.tasks.config import TaskConfig, is_number
from hanmo.tasks.divergence import Logits
from hanmo.tasks.report import scores_by_label
from hanmo.tasks.rows import Row, texts_of
from hanmo.tasks.scores import Counts
from hanmo.tasks.windows import Tokens, Window, make_windows, tokenize
from hanmo.tokenizers.protocol import Tokenizer

Arrays = dict[str, NDArray[Any]]
Batch = Mapping[str, Tensor]
Result = dict[str, Any]
"""What is predicted for a row, in the keys of a data row, with probabilities beside it."""


@dataclass(frozen=True)
class Example:
    """A row as the model reads it: the tokens of its texts, and the windows that cover them.

    kept: what a kind computes once for all windows and epochs.
    """

    row: Row
    tokens: tuple[Tokens, ...]
    windows: list[Window]
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


class Task(ABC):
    """A kind of task; a subclass has one file and one line in table.py.

    heads: names that `TaskConfig.head` may have, the default first.   forms: the same for `form`.
    main_score: name of the score in `measure` that the best weights have; higher is better.
    output: the language-model head of the backbone that the task uses: "none", "mlm" or "lm".
    offsets: whether tokens need offsets.   pooled: whether the head takes `Output.pooled` where pooling is "pooler".
    padding: fill value of a target's padding, by its name; 0 by default.   labelled: whether there are labels.
    encodes: whether it reads by an encoder, whose attention may be chosen.
    paired: whether it learns from single texts or from pairs, and then takes those alone.
    noun: what rows must have some of, if a label does not have to be in each.
    options: names of `TaskConfig.options`, each with the heads or forms that use it; () for all.
    fitting: whether results are for `calibrate` and `measure` alone, as in the evaluations of training.
    """

    heads: ClassVar[tuple[str, ...]] = ("linear",)
    forms: ClassVar[tuple[str, ...]] = ("",)
    main_score: str
    output: ClassVar[str] = "none"
    offsets: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    padding: ClassVar[dict[str, int]] = {}
    labelled: ClassVar[bool] = True
    encodes: ClassVar[bool] = True
    paired: ClassVar[bool] = False
    noun: ClassVar[str] = ""
    options: ClassVar[dict[str, tuple[str, ...]]] = {}
    fitting = False

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        """config: settled, or read from a task.json. Raises ConfigError as `check_config` does."""
        self.check_config(config)
        self.config, self.tokenizer, self.pooling = config, tokenizer, config.pools_by
        self.number = {label: number for number, label in enumerate(config.labels)}

    @classmethod
    def check_config(cls, config: TaskConfig) -> None:
        """Raise ConfigError for a head or a form that the kind has not, and for a setting that it does not use."""
        for name, value, known in (("head", config.head, cls.heads), ("form", config.form, cls.forms)):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(known)} for kind {config.kind!r}")
        if unknown := sorted(set(config.options) - set(cls.options)):
            listed = ", ".join(cls.options) or "none"
            raise ConfigError(f"the option {unknown[0]!r} is unknown; kind {config.kind!r} has {listed}")
        chosen = {config.head, config.form, config.pools_by}
        for name in config.options:
            if cls.options[name] and chosen.isdisjoint(cls.options[name]):
                users = " or ".join(map(repr, cls.options[name]))
                raise ConfigError(f"the option {name!r} has no effect here, only with head, form or pooling {users}")
        used_by = (("pooling", cls.pooled), ("labels", cls.labelled), ("attention", cls.encodes), ("keys", cls.paired))
        for name, used in used_by:
            if (value := getattr(config, name)) and not used:
                raise ConfigError(f"{name} is {value!r}, which kind {config.kind!r} does not use; leave {name} out")
        if config.attention == "causal" and config.pooling in ("pooler", "first"):
            raise ConfigError(
                f"pooling is {config.pooling!r} and attention is 'causal', by which the first token sees no other; use "
                "'last' or 'mean'"
            )

    def number_of(self, option: str, default: float) -> float:
        """Return an option that is a number. Raises ConfigError for anything else."""
        value = self.config.options.get(option, default)
        if not is_number(value):
            raise ConfigError(f"{option} is {str(value)[:100]!r}; expected a number")
        return float(value)

    def choice_of(self, option: str, *choices: str) -> str:
        """Return an option that is one of some names, the first by default. Raises ConfigError for another."""
        value = self.config.options.get(option, choices[0])
        if value not in choices:
            raise ConfigError(f"{option} is {value!r}; expected {' or '.join(map(repr, choices))}")
        return str(value)

    def class_weights(self, labels: Sequence[str]) -> list[float]:
        """Return the option "class_weights" of each label; 1 by default. Raises ConfigError for a wrong one."""
        weights = self.config.options.get("class_weights", {})
        known = isinstance(weights, dict) and set(weights) <= set(labels)
        if not known or not all(is_number(value) and value >= 0 for value in weights.values()):
            expected = f"labels of the task, each with a number from 0; these are {_listed(labels)}"
            raise ConfigError(f"class_weights is {str(weights)[:100]}; expected {expected}")
        return [float(weights.get(label, 1)) for label in labels]

    # Data

    @classmethod
    @abstractmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        """Raise `row.error(…)` for a row that cannot be trained on or measured with. Labels are checked elsewhere."""

    @classmethod
    @abstractmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        """Return the labels in a checked row."""

    @classmethod
    def settle(cls, config: TaskConfig, rows: Sequence[Row]) -> TaskConfig:
        """Fill in what the configuration leaves to the kind and to the training rows; check these.

        Labels are sorted. Raises DataError for a row that is wrong.
        """
        pooling = config.pools_by if cls.pooled else config.pooling
        config = replace(config, head=config.head or cls.heads[0], form=config.form or cls.forms[0], pooling=pooling)
        if config.labels:
            cls.check_rows(rows, config, "the configuration")
            return config
        found: set[str] = set()
        for row in rows:
            cls.check(row, config)
            found |= set(cls.labels_of(row, config))
            if "" in found:
                raise row.error("a label is empty; expected a name")
        if cls.noun and not found:
            raise DataError(f"none of the {len(rows):,} training rows has {cls.noun}; expected some")
        return replace(config, labels=tuple(sorted(found)))

    @classmethod
    def check_rows(cls, rows: Iterable[Row], config: TaskConfig, where: str) -> None:
        """Check rows and their labels. Raises DataError naming the row of a label that `where` does not have."""
        for row in rows:
            cls.check(row, config)
            for label in cls.labels_of(row, config):
                if label not in config.labels:
                    raise row.error(f"the label {label!r} is not in {where}, which has {_listed(config.labels)}")

    @classmethod
    def texts(cls, row: Row) -> tuple[str, ...]:
        """Return the texts of a row, which tell whether two rows are duplicates. Raises DataError without any."""
        return texts_of(row)

    def encode(self, row: Row) -> Example:
        """Tokenize a row's texts and cover them with windows."""
        tokens = tuple(tokenize(self.tokenizer, text, offsets=self.offsets) for text in self.texts(row))
        return Example(row, tokens, self.windows(tokens))

    def windows(self, texts: Sequence[Tokens], *, spare: int = 0) -> list[Window]:
        """Cover the texts of a row with windows; spare: ids of each that are left for what a kind adds."""
        length = (self.config.max_length or 512) - spare
        return make_windows(self.tokenizer, texts, max_length=length, stride=self.config.stride)

    def train_windows(self, example: Example) -> Sequence[Window]:
        """Return the windows of a row to train on: by default all."""
        return example.windows

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Return what people should know of the training rows beside their number and lengths; by default nothing."""
        return []

    @abstractmethod
    def target(self, example: Example, window: Window) -> Arrays:
        """Return what the loss needs of one window, by name, each without the axis of the batch.

        Axes are padded to the longest of the batch. "weight" is the window's share in the mean loss; by default the
        windows of a row share a weight of 1.
        """

    def collate(self, windows: Sequence[tuple[Example, Window]], *, targets: bool = True) -> Arrays:
        """Make a batch: "ids", "segments", "mask" [windows, n], and with targets these and "weight" [windows]."""
        batch = {
            "ids": pad([np.array(window.ids) for _, window in windows], self.tokenizer.special.pad or 0),
            "segments": pad([np.array(window.segments) for _, window in windows]),
            "mask": pad([np.ones(len(window), np.bool_) for _, window in windows]),
        }
        if targets:
            found = [self.target(*window) for window in windows]
            weights = [each.pop("weight", 1 / len(ex.windows)) for each, (ex, _) in zip(found, windows, strict=True)]
            batch |= {name: pad([each[name] for each in found], self.padding.get(name, 0)) for name in found[0]}
            batch["weight"] = np.array(weights, np.float32)
        return batch

    # Network

    def network(self, config: ModelConfig) -> ModelConfig:
        """Return the configuration of the backbone: the checkpoint's as an encoder, with the heads that the task uses.

        Raises ConfigError for a network that is no encoder and cannot be one, or lacks the output.
        """
        if config.is_encoder_decoder:
            raise ConfigError(
                f"this {config.family} has an encoder and a decoder; a task of this kind needs an encoder"
            )
        main, attention = config.main, self.config.attention
        if not attention and (config.decoder is not None or main.mask != "full"):
            raise ConfigError(
                f"this {config.family} reads from left to right; a task of this kind needs an encoder; choose "
                "attention 'full' or 'causal' to use it as one"
            )
        if self.output not in ("none", config.output):
            raise ConfigError(
                f"output is {config.output!r}; a task of this kind needs a checkpoint with {self.output!r}"
            )
        pool = "none"
        if self.pooled and self.pooling == "pooler":
            pool = new_pooler(config) if config.pool == "none" else config.pool
        encoder = replace(main, mask=attention or main.mask)
        return replace(
            config, encoder=encoder, decoder=None, output=self.output, pool=pool, nsp=False, discriminator=False
        )

    @abstractmethod
    def head(self, config: ModelConfig) -> nn.Module:
        """Make the head on a backbone of this configuration, initialized as its class does."""

    def head_rate(self, name: str) -> float:
        """Return the factor of the learning rate of one of the head's parameters; by default 1."""
        return 1.0

    def forward(self, backbone: Model, head: nn.Module, batch: Batch) -> Any:
        """Compute outputs of a batch: by default head(Output of the backbone, batch)."""
        return head(self.read(backbone, batch), batch)

    def read(self, backbone: Model, batch: Batch) -> Output:
        """Compute the backbone's output without logits; one of a single segment reads both texts of a pair as that."""
        segments = batch["segments"] if backbone.config.main.segments > 1 else None
        found: Output = backbone(batch["ids"], segments=segments, mask=batch["mask"], logits="none")
        return found

    @abstractmethod
    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the loss of each window [windows]; training minimises their mean weighted by "weight"."""

    def logits(self, outputs: Any, batch: Batch) -> Sequence[Logits]:
        """Return the distributions that outputs predict, which R-Drop, VAT and distillation compare.

        By default outputs are a tensor [windows, …, classes] of logits of a softmax. Targets may be missing.
        """
        return [Logits(outputs)]

    # Results

    def infer(self, network: "TaskNetwork", batch: Batch) -> Sequence[Any]:
        """Return the outputs of each window for `decode`: by default NumPy arrays in float32, padding included."""
        return list(network(batch).float().cpu().numpy())

    @abstractmethod
    def decode(self, example: Example, outputs: Sequence[Any]) -> Result:
        """Make the result of a row from the outputs of its windows, with offsets in the row's text."""

    def calibrate(self, rows: Sequence[Row], results: Sequence[Result]) -> tuple[TaskConfig, Sequence[Result]]:
        """Fit thresholds and temperature on dev rows; return the configuration with them, and the results it gives.

        Called before `measure` at each evaluation of training; by default nothing is fitted.
        """
        return self.config, results

    def label_counts(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, Counts]:
        """Count the correct, predicted and true items of each label; {} for a task without labels."""
        return scores_by_label(rows, results)

    @abstractmethod
    def measure(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
        """Score results against rows; the scores hold `self.main_score`, and none is NaN."""


class TaskNetwork(nn.Module):
    """A backbone and the head of a task; called with a batch, it returns what `Task.forward` does."""

    def __init__(self, backbone: Model, head: nn.Module, task: Task) -> None:
        super().__init__()
        self.backbone, self.head, self.task = backbone, head, task

    def forward(self, batch: Batch) -> Any:
        """batch: as `Task.collate` makes it, as tensors."""
        return self.task.forward(self.backbone, self.head, batch)

    def in_torch(self) -> "TaskNetwork":
        """Return a network with these weights that torch computes, whatever computes this one's encoder."""
        network = self.empty()
        network.load_state_dict(self.state_dict(), assign=True)
        return network.eval()

    def empty(self) -> "TaskNetwork":
        """Return an equal network without weights, on "meta"."""
        with torch.device("meta"):
            return TaskNetwork(self.backbone.empty(), self.task.head(self.backbone.config), self.task)


def new_pooler(config: ModelConfig) -> str:
    """Return the activation of a pooler that a checkpoint lacks: that of the family's classifier in transformers."""
    return {"electra": "gelu_erf", "roformer": config.main.activation}.get(config.family, "tanh")


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of losses [windows] weighted by weight [windows]; 0 if all weights are 0."""
    return (losses * weight).sum() / weight.sum().clamp(min=1e-12)


def pad(arrays: Sequence[Any], value: int = 0) -> NDArray[Any]:
    """Stack arrays of one number of axes, each padded at its end to the longest of its axis."""
    parts = [np.asarray(array) for array in arrays]
    made = np.full((len(parts), *np.max([part.shape for part in parts], 0).astype(int)), value, parts[0].dtype)
    for number, part in enumerate(parts):
        place: tuple[Any, ...] = (number, *map(slice, part.shape))
        made[place] = part
    return made


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
