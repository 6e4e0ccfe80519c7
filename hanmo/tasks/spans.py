"""Find labelled spans, nested ones too, by pointers.

    {"text": …, "spans": [{"start", "stop", "label"}]}    → {"spans": [{"start", "stop", "label", "text", "score"}]}

A score is the pointer's; more than the label's threshold, 0 unless chosen on dev rows, is predicted. Of a text's
window at most four spans a token are. Options: "head_size"; "loss", "sparse" or "dense".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from hanmo.config import ModelConfig
from hanmo.model import Model
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.pointer import POINTERS, GlobalPointer, best_pairs, pair_array, pointer_loss
from hanmo.tasks.pointer_task import Item, ItemTask
from hanmo.tasks.rows import Row, spans_of, texts_of
from hanmo.tasks.task import Arrays, Batch, Example, Result, TaskNetwork
from hanmo.tasks.windows import Window
from hanmo.tokenizers.protocol import Tokenizer

_MOST = 4  # spans of a window for each of its tokens

Found = list[tuple[int, int, int, float]]


class Spans(ItemTask):
    """kind "spans"."""

    heads = tuple(POINTERS)
    noun = "spans"
    options: ClassVar[dict[str, tuple[str, ...]]] = {"head_size": (), "class_weights": (), "loss": ()}

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.dense = self.choice_of("loss", "sparse", "dense") == "dense"

    @classmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        texts_of(row)
        row.get("spans", list)
        spans_of(row)

    @classmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        return [label for _, _, label in spans_of(row)]

    @classmethod
    def groups(cls, row: Row) -> Iterable[Sequence[tuple[int, int]]]:
        return [[(start, stop)] for start, stop, _ in spans_of(row)]

    def target(self, example: Example, window: Window) -> Arrays:
        pairs: list[set[tuple[int, int]]] = [set() for _ in self.config.labels]
        for start, stop, label in spans_of(example.row):
            pairs[self.number[label]].update(self.places(example, window, [(start, stop)]) or ())
        return {"pairs": pair_array(pairs)}

    def head(self, config: ModelConfig) -> GlobalPointer:
        return POINTERS[self.config.head](config.main.hidden_size, len(self.config.labels), head_size=self.head_size)

    def forward(self, backbone: Model, head: nn.Module, batch: Batch) -> Tensor:
        """Return scores [windows, labels, n, n]."""
        scores: Tensor = head(self.read(backbone, batch).hidden, batch["mask"])
        return scores

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return pointer_loss(outputs.float(), batch["pairs"], dense=self.dense, weights=self.weights)

    def infer(self, network: TaskNetwork, batch: Batch) -> list[Found]:
        return [
            best_pairs(scores, above=self.floor, start=start, stop=stop, limit=_MOST * (stop - start))
            for scores, (start, stop) in zip(network(batch).float(), batch["text"].tolist(), strict=True)
        ]

    def located(self, example: Example, number: int, found: tuple[int, int, int, float]) -> tuple[Item, float] | None:
        label, first, last, score = found
        spans = self.characters(example, number, [(first, last)])
        return None if spans is None else ((self.config.labels[label], *spans[0]), score)

    @classmethod
    def true_items(cls, row: Row) -> set[Item]:
        return {(label, start, stop) for start, stop, label in spans_of(row)}

    @classmethod
    def found_items(cls, row: Row, result: Result) -> set[Item]:
        return {(span["label"], span["start"], span["stop"]) for span in result["spans"]}

    def make_result(self, text: str, items: Mapping[Item, float]) -> Result:
        spans = [
            {"start": start, "stop": stop, "label": label, "text": text[start:stop], "score": score}
            for (label, start, stop), score in items.items()
        ]
        return {"spans": sorted(spans, key=lambda span: (span["start"], span["stop"], span["label"]))}
