"""Tag texts: spans that do not overlap, such as entities or words, by one tag a token.

    {"text": …, "spans": [{"start": 0, "stop": 2, "label": "LOC"}]}     forms "BIO", "BMES"
    {"words": ["我们", "在", "北京"]}                                      form "words"

The result has the same keys; each span also has its "text" and "probability". The tags of a long text are decoded over
all of it, from the scores that each token has in its deciding window.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.model import Output
from hanmo.nn.linear import Linear
from hanmo.tasks.chains import align_left, crf_losses, memm_losses
from hanmo.tasks.config import TaskConfig, is_number
from hanmo.tasks.divergence import Logits
from hanmo.tasks.rows import Row, spans_of, texts_of
from hanmo.tasks.schemes import SCHEMES, Scheme, memm_scores
from hanmo.tasks.scores import set_scores
from hanmo.tasks.task import Arrays, Batch, Example, Result, Task, TaskNetwork
from hanmo.tasks.windows import Window, merge_tokens
from hanmo.tokenizers.protocol import Tokenizer

WORD = "word"
_TRANSITIONS_RATE = 100.0


class TagScores(NamedTuple):
    """Scores of the tags [windows, n, tags], and of transitions [tags, tags] unless the head is "softmax"."""

    scores: Tensor
    transitions: Tensor | None


class TagHead(nn.Module):
    """Dropout and a linear layer on each token's vector; with transitions for "crf" and "memm"."""

    def __init__(self, config: ModelConfig, tags: int, *, transitions: bool) -> None:
        super().__init__()
        self.dropout = config.main.dropout
        self.linear = Linear(config.main.hidden_size, tags)
        self.transitions = nn.Parameter(nn.init.xavier_uniform_(torch.empty(tags, tags))) if transitions else None

    def forward(self, output: Output, batch: Batch) -> TagScores:
        """Return the scores of a batch."""
        scores = self.linear(F.dropout(output.hidden, self.dropout, self.training))
        # A copy, for a sharded parameter is freed after the forward pass.
        return TagScores(scores, None if self.transitions is None else self.transitions.clone())


class Tag(Task):
    """kind "tag"."""

    heads = ("crf", "softmax", "memm")
    forms = tuple(SCHEMES)
    noun = "spans"
    main_score = "f1"
    offsets = True
    options: ClassVar[dict[str, tuple[str, ...]]] = {"class_weights": (), "transitions_rate": ("crf", "memm")}
    padding: ClassVar[dict[str, int]] = {"tags": -1}

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        if config.form == "words" and len(config.labels) != 1:
            raise ConfigError(f"the labels are {list(config.labels)}; expected one for form 'words'")
        self.scheme = Scheme(config.form, config.labels)
        self.transitions_rate = config.options.get("transitions_rate", _TRANSITIONS_RATE)
        if not is_number(self.transitions_rate) or not self.transitions_rate > 0:
            raise ConfigError(f"transitions_rate is {self.transitions_rate!r}; expected a factor of the rate above 0")
        if config.options.get("class_weights") and config.head == "crf":
            raise ConfigError("class_weights is given with head 'crf', whose loss is one of whole texts; use 'softmax'")
        names = [config.labels[number] if number >= 0 else "O" for number in self.scheme.label_of]
        weights = dict(zip(("O", *config.labels), self.class_weights(("O", *config.labels)), strict=True))
        self.weights = np.array([weights[name] for name in names], np.float32)

    # Data

    @classmethod
    def settle(cls, config: TaskConfig, rows: Sequence[Row]) -> TaskConfig:
        if not config.form and "words" in rows[0].data:
            config = replace(config, form="words")
        return super().settle(config, rows)

    @classmethod
    def texts(cls, row: Row) -> tuple[str, ...]:
        row = _with_spans(row)
        row.get("text", str)
        return texts_of(row)

    @classmethod
    def spans(cls, row: Row) -> list[tuple[int, int, str]]:
        """Return the row's spans in order, without the spaces around them."""
        row = _with_spans(row)
        row.get("spans", list)
        text, found = row.data["text"], set()
        for start, stop, label in spans_of(row):
            inner = text[start:stop].strip()
            if not inner:
                raise row.error(f"the span {start}:{stop} holds spaces only")
            start += text[start:stop].index(inner)
            found.add((start, start + len(inner), label))
        return sorted(found)

    @classmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        (text,), spans = cls.texts(row), cls.spans(row)
        for (start, stop, label), (other, end, name) in pairwise(spans):
            if other < stop:
                raise row.error(
                    f"the spans {start}:{stop} {label} and {other}:{end} {name} overlap; kind 'tag' gives each "
                    "character one label at most, kind 'spans' takes nested and crossing spans"
                )
        if config.form == "words":
            stops = [0, *(stop for _, stop, _ in spans)]
            for stop, start in zip(stops, [*(start for start, _, _ in spans), len(text)], strict=True):
                if left := text[stop:start].strip():
                    raise row.error(f"{left[:20]!r} after character {stop} is in no word")

    @classmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        return {label for _, _, label in cls.spans(row)}

    def notes(self, examples: Sequence[Example]) -> list[str]:
        spans = [len(self.spans(example.row)) for example in examples]
        missed = sum(spans) - sum(len(self._placed(example)) for example in examples)
        notes = [f"spans: {sum(spans):,}, in {sum(map(bool, spans)):,} rows"]
        if missed:
            notes.append(
                f"spans that begin or end inside a token: {missed:,}; they cannot be learned, and count as missed"
            )
        return notes

    def _placed(self, example: Example) -> list[tuple[int, int, int]]:
        """Return the spans in tokens, with the numbers of their labels."""
        places = [(example.tokens[0].find(start, stop), label) for start, stop, label in self.spans(example.row)]
        return [(*place, self.number[label]) for place, label in places if place is not None]

    def target(self, example: Example, window: Window) -> Arrays:
        part = window.parts[0]
        if "tags" not in example.kept:
            example.kept["tags"] = self.scheme.encode(self._placed(example), len(example.tokens[0]))
        tags = example.kept["tags"][part.start : part.stop]
        row = np.full(len(window), -1, np.int64)
        row[part.at : part.at + len(part)] = tags
        if self.config.head == "crf":
            return {"tags": row}
        # Every token of a text weighs the same, whether one window has it or two.
        repeats = sum(len(each.parts[0]) for each in example.windows) / max(1, len(example.tokens[0]))
        return {"tags": row, "weight": self.weights[tags].sum() / max(1.0, repeats)}

    # Network

    def head(self, config: ModelConfig) -> TagHead:
        return TagHead(config, len(self.scheme.tags), transitions=self.config.head != "softmax")

    def head_rate(self, name: str) -> float:
        return self.transitions_rate if name == "transitions" else 1.0

    def losses(self, outputs: TagScores, batch: Batch) -> Tensor:
        tags, transitions = batch["tags"], outputs.transitions
        with torch.autocast(tags.device.type, enabled=False):
            scores, tags, mask = align_left(outputs.scores.float(), tags, tags >= 0)
            if transitions is not None and self.config.head == "crf":
                return crf_losses(scores, tags, transitions, mask)
            if transitions is None:
                losses = F.cross_entropy(scores.transpose(1, 2), tags, reduction="none")
            else:
                losses = memm_losses(scores, tags, transitions, mask)
            weights = torch.from_numpy(self.weights).to(tags.device)[tags] * mask
            return (losses * weights).sum(1) / weights.sum(1).clamp(min=1e-12)

    def logits(self, outputs: TagScores, batch: Batch) -> Sequence[Logits]:
        return [Logits(outputs.scores, mask=batch["mask"])]

    # Results

    def infer(self, network: TaskNetwork, batch: Batch) -> Sequence[Any]:
        outputs: TagScores = network(batch)
        between = None if outputs.transitions is None else outputs.transitions.float().cpu().numpy()
        return [(scores, between) for scores in outputs.scores.float().cpu().numpy()]

    def decode(self, example: Example, outputs: Sequence[tuple[NDArray[Any], NDArray[Any] | None]]) -> Result:
        tokens, text = example.tokens[0], example.tokens[0].text
        scores = merge_tokens(example.windows, [each for each, _ in outputs])
        transitions: NDArray[Any] | float = 0.0 if outputs[0][1] is None else outputs[0][1]
        if self.config.head == "memm":
            scores, transitions = memm_scores(scores, np.asarray(transitions))
        found, spans = self.scheme.decode(self.scheme.path(scores, transitions)), list[dict[str, Any]]()
        for first, last, label in found:
            start, stop = tokens.characters(first, last)
            spans.append({"start": start, "stop": stop, "label": self.config.labels[label], "text": text[start:stop]})
        if not self.fitting:
            odds = self.scheme.probabilities(scores, transitions, found)
            spans = [{**span, "probability": each} for span, each in zip(spans, odds, strict=True)]
        return {"spans": spans} | ({"words": [s["text"] for s in spans]} if self.config.form == "words" else {})

    def measure(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
        found = [[(s["start"], s["stop"], s["label"]) for s in result["spans"]] for result in results]
        return set_scores([self.spans(row) for row in rows], found)


def _with_spans(row: Row) -> Row:
    """Return a row of words as one of spans; another as it is."""
    if "words" not in row.data:
        return row
    words = row.get("words", list)
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise row.error(f"'words' is {str(words)[:100]}; expected a list of words")
    text = "".join(words)
    if row.data.get("text", text) != text:
        raise row.error("'text' is not its 'words' joined; leave 'text' out")
    stops = np.cumsum([len(word) for word in words]).tolist()
    spans = [{"start": b - len(w), "stop": b, "label": WORD} for w, b in zip(words, stops, strict=True)]
    return Row(row.where, {"text": text, "spans": spans})
