"""What kinds of tasks with pointers share: their options, places of spans in windows, thresholds of items.

An item is what is found or missed: a tuple whose first part is its label, as (label, start, stop) in code points.
Knows rows and windows; the kinds know what their items are.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
from torch import Tensor

from hanmo.errors import ConfigError
from hanmo.tasks.calibration import best_threshold
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.divergence import Logits
from hanmo.tasks.pointer import Pair
from hanmo.tasks.rows import Row
from hanmo.tasks.scores import Counts, count_sets, set_scores
from hanmo.tasks.task import Arrays, Batch, Example, Result, Task
from hanmo.tasks.windows import Window, decides
from hanmo.tokenizers.protocol import Tokenizer

Item: TypeAlias = tuple[Any, ...]

_FLOOR = -4.0  # no threshold is chosen below it


class PointerTask(Task):
    """A kind whose network scores pairs of places.

    Options "head_size": features of a pointer's query and key, 64 by default; "class_weights": factors of the loss of
    what has a label.
    """

    main_score = "f1"
    offsets = True
    options: ClassVar[dict[str, tuple[str, ...]]] = {"head_size": ("gplinker",), "class_weights": ()}

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.head_size = config.options.get("head_size", 64)
        if type(self.head_size) is not int or self.head_size < 2 or self.head_size % 2:
            raise ConfigError(f"head_size is {self.head_size!r}; expected an even number above 0")
        self.weights = self.class_weights(config.labels)
        if tokenizer.special.start is None:
            raise ConfigError("the vocabulary has no start mark such as [CLS], which a task with pointers needs")

    def logits(self, outputs: Any, batch: Batch) -> Sequence[Logits]:
        scores = [outputs] if isinstance(outputs, Tensor) else outputs
        return [Logits(each.flatten(2), "bernoulli") for each in scores]  # [windows, heads, n n]

    # Places

    @classmethod
    @abstractmethod
    def groups(cls, row: Row) -> Iterable[Sequence[tuple[int, int]]]:
        """Yield (start, stop) in code points of spans that have to be in one window to be learned."""

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Return what people should know of the training rows: here, how much of them cannot be learned."""
        total = torn = apart = 0
        for example in examples:
            for group in self.groups(example.row):
                total += 1
                if any(example.tokens[0].find(*span) is None for span in group):
                    torn += 1
                elif not any(self.places(example, window, group) for window in example.windows):
                    apart += 1
        notes = [f"{self.noun}: {total:,}"]
        if torn:
            notes.append(f"{torn:,} of them begin or end inside a token, and cannot be learned or found")
        if apart:
            notes.append(f"{apart:,} of them fit no window, and cannot be learned or found; raise max_length")
        return notes

    @staticmethod
    def places(example: Example, window: Window, group: Iterable[tuple[int, int]]) -> list[Pair] | None:
        """Return the places in a window's ids of spans in code points; None unless it has them all."""
        found = []
        for span in group:
            tokens = example.tokens[0].find(*span)
            place = None if tokens is None else window.parts[0].place(*tokens)
            if place is None:
                return None
            found.append((place[0], place[1] - 1))
        return found

    @staticmethod
    def characters(example: Example, number: int, places: Sequence[Pair]) -> list[tuple[int, int]] | None:
        """Return (start, stop) in code points of places in a window's ids; None if another window decides."""
        part = example.windows[number].parts[0]
        tokens = [(first - part.at + part.start, last + 1 - part.at + part.start) for first, last in places]
        first, last = min(start for start, _ in tokens), max(stop for _, stop in tokens)
        if not decides(example.windows, number, first, last):
            return None
        return [example.tokens[0].characters(*span) for span in tokens]

    def collate(self, windows: Sequence[tuple[Example, Window]], *, targets: bool = True) -> Arrays:
        """Make a batch as `Task.collate` does, with "text" [windows, 2]: places of the text in the ids."""
        parts = [window.parts[0] for _, window in windows]
        text = np.array([[part.at, part.at + len(part)] for part in parts])
        return {**super().collate(windows, targets=targets), "text": text}

    # Items

    @classmethod
    @abstractmethod
    def true_items(cls, row: Row) -> set[Item]:
        """Return what is right."""

    @classmethod
    @abstractmethod
    def found_items(cls, row: Row, result: Result) -> set[Item]:
        """Return what was found, in the form in which `true_items` gives what is right."""

    @property
    def floor(self) -> float:
        """Score below which nothing has to be kept."""
        return min([0.0, *self.config.thresholds.values()])

    def label_counts(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, Counts]:
        true, found = self._sides(rows, results)

        def of(label: str, side: Sequence[set[Item]]) -> list[set[Item]]:
            return [{item for item in items if item[0] == label} for items in side]

        return {label: count_sets(of(label, true), of(label, found)) for label in self.config.labels}

    def _sides(self, rows: Sequence[Row], results: Sequence[Result]) -> tuple[list[set[Item]], list[set[Item]]]:
        """Return the true items and the found ones of each row."""
        found = [self.found_items(row, result) for row, result in zip(rows, results, strict=True)]
        return [self.true_items(row) for row in rows], found

    def measure(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
        return set_scores(*self._sides(rows, results))


class ItemTask(PointerTask):
    """A kind whose result says items that each have a score, with a threshold for each label.

    calibrated: whether thresholds are chosen on dev rows.
    """

    calibrated = True

    @classmethod
    def compared(cls, row: Row, item: Item) -> Item:
        """Return an item in the form in which `true_items` gives what is right."""
        return item

    @abstractmethod
    def make_result(self, text: str, items: Mapping[Item, float]) -> Result:
        """Return the result that says these items, each with its score."""

    @abstractmethod
    def located(self, example: Example, number: int, found: Any) -> tuple[Item, float] | None:
        """Return the item and the score of something that window `number` found; None if another window decides."""

    def decode(self, example: Example, outputs: Sequence[Sequence[Any]]) -> Result:
        items: dict[Item, float] = {}
        for number, some in enumerate(outputs):
            for found in some:
                if located := self.located(example, number, found):
                    item, score = located
                    items[item] = max(score, items.get(item, score))
        return self.result(example.row.data["text"], items)

    @property
    def floor(self) -> float:
        return _FLOOR if self.calibrated and not self.config.thresholds else super().floor

    def result(self, text: str, items: Mapping[Item, float]) -> Result:
        """Return the result of a row: the items above their thresholds and, until these are chosen, all candidates."""
        found = self._chosen(text, items, self.config.thresholds)
        if self.calibrated and not self.config.thresholds:
            found["candidates"] = [[*item, score] for item, score in items.items()]
        return found

    def _chosen(self, text: str, items: Mapping[Item, float], thresholds: Mapping[str, float]) -> Result:
        return self.make_result(text, {item: s for item, s in items.items() if s > thresholds.get(item[0], 0.0)})

    def calibrate(self, rows: Sequence[Row], results: Sequence[Result]) -> tuple[TaskConfig, Sequence[Result]]:
        if not self.calibrated or self.config.thresholds:
            return self.config, results
        scores: dict[str, list[float]] = {label: [] for label in self.config.labels}
        right: dict[str, list[bool]] = {label: [] for label in self.config.labels}
        items = [{tuple(each[:-1]): each[-1] for each in result["candidates"]} for result in results]
        for row, some in zip(rows, items, strict=True):
            true, found = self.true_items(row), dict[Item, float]()
            for item, score in some.items():
                key = self.compared(row, item)
                found[key] = max(score, found.get(key, score))
            for key in found.keys() | true:
                scores[key[0]].append(found.get(key, _FLOOR - 1))
                right[key[0]].append(key in true)
        chosen = {
            label: max(_FLOOR, best_threshold(np.array(scores[label]), np.array(right[label], bool), default=0.0))
            for label in self.config.labels
        }
        cut = [self._chosen(str(row.data["text"]), some, chosen) for row, some in zip(rows, items, strict=True)]
        return replace(self.config, thresholds=chosen), cut
