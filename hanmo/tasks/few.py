"""Classify by the words that a masked language model puts into a template (PET): for few labelled rows.

    {"text": …, "label": "体育"}     → {"label", "probability", "probabilities"}, as classify.py

    template "以下是{label}新闻：{text}"    words {"体育": "体育", "财经": "股票"}
    [CLS] 以下是 [MASK] [MASK] 新闻： … [SEP]

A label's score is the sum of log p of its word's tokens, each at its [MASK]. The softmax of the scores over labels is
that of the paper (Schick and Schütze 2021, arXiv 2001.07676), since what normalizes p is the same for all labels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.model import Model
from hanmo.tasks.classify import Classify
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.rows import Row
from hanmo.tasks.task import Batch, Example
from hanmo.tasks.windows import Part, Window, tokenize
from hanmo.tokenizers.protocol import Tokenizer

_DEFAULT = "{label}：{text}"


class Few(Classify):
    """kind "few".

    options: "template" with {label} and {text} once each; "words": label → word, the label itself by default; "loss":
    "labels", cross entropy over the labels (the paper), or "vocabulary", over all tokens at each [MASK]
    (kexue.fm/archives/7764); "class_weights" as in "classify".
    """

    forms = ("single",)
    pooled = False
    output = "mlm"
    options: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(("class_weights", "loss", "template", "words"), ())

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.loss = self.choice_of("loss", "labels", "vocabulary")
        if tokenizer.special.mask is None:
            raise ConfigError("this vocabulary has no [MASK], in whose place a word is predicted")
        self.mask = tokenizer.special.mask
        self.words = [self._word(label) for label in config.labels]
        lengths = {label: len(word) for label, word in zip(config.labels, self.words, strict=True)}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"the words of the labels have {lengths} tokens; expected words of the same number")
        self.before, self.after = self._template(config.options.get("template", _DEFAULT), len(self.words[0]))

    def _word(self, label: str) -> list[int]:
        words = self.config.options.get("words", {})
        if not isinstance(words, dict) or not isinstance(words.get(label, label), str):
            raise ConfigError(f"words is {str(words)[:100]}; expected a word for each label")
        word = words.get(label, label)
        ids = self.tokenizer.encode(word, ends=False).ids
        if not ids or self.tokenizer.special.unk in ids:
            raise ConfigError(f"the word {word!r} of label {label!r} is not in the vocabulary; give another in words")
        return ids

    def _template(self, template: Any, masks: int) -> tuple[list[int], list[int]]:
        """Return the ids before and after the text."""
        if not isinstance(template, str) or template.count("{text}") != 1 or template.count("{label}") != 1:
            raise ConfigError(f"template is {template!r}; expected a string with {{label}} and {{text}} once each")

        def ids(part: str) -> list[int]:
            sides = [self.tokenizer.encode(side, ends=False).ids for side in part.split("{label}")]
            return [*sides[0], *([self.mask] * masks), *sides[1]] if len(sides) == 2 else sides[0]

        before, after = template.split("{text}")
        return ids(before), ids(after)

    @classmethod
    def settle(cls, config: TaskConfig, rows: Sequence[Row]) -> TaskConfig:
        return super().settle(replace(config, form=config.form or "single"), rows)

    @classmethod
    def texts(cls, row: Row) -> tuple[str, ...]:
        texts = super().texts(row)
        if len(texts) > 1:
            raise row.error("it is a pair; a template of 'few' takes one 'text'")
        return texts

    def encode(self, row: Row) -> Example:
        tokens = tokenize(self.tokenizer, self.texts(row)[0])
        windows = self.windows([tokens], spare=len(self.before) + len(self.after))
        return Example(row, (tokens,), [self._fill(window) for window in windows])

    def _fill(self, window: Window) -> Window:
        """Put the template around the text of a window."""
        (part,) = window.parts
        at, stop = part.at, part.at + len(part)
        ids = [*window.ids[:at], *self.before, *window.ids[at:stop], *self.after, *window.ids[stop:]]
        return Window(ids, [0] * len(ids), (Part(at + len(self.before), part.start, part.stop),))

    def head(self, config: ModelConfig) -> nn.Module:  # type: ignore[override]
        return nn.Identity()

    def forward(self, backbone: Model, head: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probability of each label's word [windows, labels], in float32."""
        hidden = self.read(backbone, batch).hidden
        places = (batch["ids"] == self.mask).int().topk(len(self.words[0])).indices.sort().values  # [windows, masks]
        masked = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        logs = backbone.logits(masked).float().log_softmax(-1)  # [windows, masks, vocab]
        words = torch.tensor(self.words, device=logs.device).T  # [masks, labels]
        return logs.gather(2, words.expand(len(logs), -1, -1)).sum(1)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        if self.loss == "vocabulary":
            return -outputs.gather(1, batch["label"][:, None])[:, 0] / len(self.words[0])
        return F.cross_entropy(outputs, batch["label"], reduction="none")
