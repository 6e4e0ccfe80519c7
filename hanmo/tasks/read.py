"""Answer questions about a passage by a part of it: two positions of the passage, as in BERT.

    {"text": passage, "question": …, "answers": [{"start": 3, "stop": 5} or "北京", …]}
    → {"answer": "北京", "start": 3, "stop": 5, "probability"}; "" and null where the passage has no answer

No answers in the list: the passage has none. Training takes the first answer: the given place, or every place where a
string occurs. `Reading` is what this kind shares with read_mlm.py and read_seq2seq.py.
"""

from collections.abc import Iterable, Mapping, Sequence
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
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.divergence import Logits
from hanmo.tasks.rows import Row, spans_of, texts_of
from hanmo.tasks.scores import answer_scores
from hanmo.tasks.task import Arrays, Batch, Example, Result, Task
from hanmo.tasks.windows import Window, deciding
from hanmo.tokenizers.protocol import Tokenizer

MAX_ANSWER = 32
ANSWER = "answer"
"""Name of the threshold of kind "read": how much higher an answer's sum of logits is than that of no answer."""


class Reading(Task):
    """The data and the scores of every kind that answers questions.

    passage: which text of an example the passage is.   Option "max_answer": tokens of the longest answer.
    """

    main_score = "f1"
    offsets = True
    labelled = False
    options: ClassVar[dict[str, tuple[str, ...]]] = {"max_answer": ()}
    passage = 1

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.max_answer = config.options.get("max_answer", MAX_ANSWER)
        if type(self.max_answer) is not int or self.max_answer < 1:
            raise ConfigError(f"max_answer is {self.max_answer!r}; expected a whole number above 0")

    @classmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        cls.texts(row)
        row.get("answers", list)
        places_of(row)

    @classmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        return ()

    @classmethod
    def texts(cls, row: Row) -> tuple[str, ...]:
        return texts_of(row, ("question", "text"))

    def train_windows(self, example: Example) -> Sequence[Window]:
        for first, stop in self.answer_tokens(example):
            if stop - first > self.max_answer:
                raise example.row.error(
                    f"an answer has {stop - first} tokens; max_answer is {self.max_answer}, give the task a larger one"
                )
        return example.windows

    def answer_tokens(self, example: Example) -> list[tuple[int, int]]:
        """Return where the first answer is in the tokens of the passage, in every place that it may be."""
        if "answer" not in example.kept:
            places = places_of(example.row)[:1]
            example.kept["answer"] = [example.tokens[self.passage].cover(*each) for some in places for each in some]
        found: list[tuple[int, int]] = example.kept["answer"]
        return found

    def result(self, example: Example, place: tuple[int, int] | None, **more: float) -> Result:
        """Return the result of a row whose answer is these tokens of the passage, or that has none."""
        if place is None:
            return {"answer": "", "start": None, "stop": None, **more}
        tokens = example.tokens[self.passage]
        start, stop = tokens.characters(*place)
        return {"answer": tokens.text[start:stop], "start": start, "stop": stop, **more}

    def measure(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
        true = []
        for row in rows:
            text = row.data["text"]
            true.append([text[places[0][0] : places[0][1]] for places in places_of(row)])
        return answer_scores(true, [result["answer"] for result in results])


class Read(Reading):
    """kind "read".

    Option "unanswered": whether a passage may have no answer; by default whether a training row has none.
    """

    options: ClassVar[dict[str, tuple[str, ...]]] = {"max_answer": (), "unanswered": ()}

    @classmethod
    def settle(cls, config: TaskConfig, rows: Sequence[Row]) -> TaskConfig:
        config = super().settle(config, rows)
        unanswered = any(not row.data["answers"] for row in rows)
        return replace(config, options={"unanswered": unanswered, **config.options})

    def target(self, example: Example, window: Window) -> Arrays:
        part = window.parts[self.passage]
        inside = [place for answer in self.answer_tokens(example) if (place := part.place(*answer)) is not None]
        first, stop = inside[0] if inside else (0, 1)  # the first mark says that the window has no answer
        return {"place": np.array([first, stop - 1])}

    def head(self, config: ModelConfig) -> "ReadHead":
        return ReadHead(config)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        logits = outputs.float().masked_fill(~batch["mask"][..., None], -1e9)
        return F.cross_entropy(logits, batch["place"], reduction="none").mean(-1)

    def logits(self, outputs: Tensor, batch: Batch) -> Sequence[Logits]:
        return [Logits(outputs.masked_fill(~batch["mask"][..., None], -torch.inf).transpose(1, 2))]

    def decode(self, example: Example, outputs: Sequence[NDArray[np.float32]]) -> Result:
        """Take the span with the highest sum of logits, as BERT's run_squad.py, each from the window that decides."""
        best, empty = (-np.inf, 0.0), (np.inf, 0.0)  # scores, each with its probability
        chosen: tuple[int, int] | None = None
        for number, (window, padded) in enumerate(zip(example.windows, outputs, strict=True)):
            logits = padded[: len(window)].astype(np.float64)
            total = np.logaddexp.reduce(logits, 0).sum()
            empty = min(empty, (logits[0].sum(), float(np.exp(logits[0].sum() - total))))
            part = window.parts[self.passage]
            for score, first, stop in self._spans(logits[part.at : part.at + len(part)]):
                place = part.start + first, part.start + stop
                if score <= best[0]:
                    break
                if deciding(example.windows, *place, text=self.passage) == number:
                    best, chosen = (score, float(np.exp(score - total))), place
                    break
        none = self.result(example, None, probability=empty[1])
        if chosen is None:
            return none
        found = self.result(example, chosen, probability=best[1])
        if not self.config.options.get("unanswered", False):
            return found
        margin, limit = best[0] - empty[0], self.config.thresholds.get(ANSWER)
        result = found if margin > (limit or 0.0) else none
        return {**result, "sides": [margin, none, found]} if self.fitting and limit is None else result

    def calibrate(self, rows: Sequence[Row], results: Sequence[Result]) -> tuple[TaskConfig, Sequence[Result]]:
        """Choose how much higher than that of no answer an answer's sum of logits is: the limit with the best F1."""
        sides = [(row, *result["sides"]) for row, result in zip(rows, results, strict=True) if "sides" in result]
        if not sides:
            return self.config, results
        margins = np.array([margin for _, margin, _, _ in sides])
        gains = np.array([self._f1(row, found) - self._f1(row, none) for row, _, none, found in sides])
        steps = np.unique(margins)
        limits = [0.0, *((steps[1:] + steps[:-1]) / 2).tolist(), float(steps[-1]), float(steps[0]) - 1]
        limit = max(limits, key=lambda each: gains[margins > each].sum())  # the first of equal ones

        def cut(result: Result) -> Result:
            margin, none, found = result.get("sides", (0.0, result, result))
            return dict(found if margin > limit else none)

        return replace(self.config, thresholds={ANSWER: limit}), [cut(result) for result in results]

    def _f1(self, row: Row, result: Result) -> float:
        return self.measure([row], [result])["f1"]

    def _spans(self, logits: NDArray[np.float64]) -> Iterable[tuple[float, int, int]]:
        """Yield (sum of logits, start, stop) of spans of the passage's tokens [n, 2], best first."""
        scores = logits[:, None, 0] + logits[None, :, 1]
        length = np.arange(len(logits))[None, :] - np.arange(len(logits))[:, None]
        scores[(length < 0) | (length >= self.max_answer)] = -np.inf
        for place in np.argsort(-scores, axis=None, kind="stable"):
            first, last = divmod(int(place), len(logits))
            yield float(scores[first, last]), first, last + 1


class ReadHead(nn.Module):
    """Logits of every token to be the first and the last of the answer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear = Linear(config.main.hidden_size, 2)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """Return logits [windows, n, 2]."""
        return self.linear(output.hidden)


def places_of(row: Row) -> list[list[tuple[int, int]]]:
    """Return for each answer the places (start, stop) in the row's text where it may be.

    Raises DataError for an answer that is not in the text, or whose place is wrong.
    """
    text, found = row.data["text"], []
    for answer in row.get("answers", list, default=[]):
        if isinstance(answer, Mapping):
            span: dict[str, Any] = {"label": "", **answer}
            if "stop" not in span and isinstance(span.get("text"), str) and type(span.get("start")) is int:
                span["stop"] = span["start"] + len(span["text"])  # as SQuAD's files say it
            ((start, stop, _),) = spans_of(Row(row.where, {"text": text, "answers": [span]}), "answers")
            if not text[start:stop].strip():
                raise row.error(f"the answer {start}:{stop} is empty")
            found.append([(start, stop)])
            continue
        if not isinstance(answer, str) or not answer.strip():
            raise row.error(f'\'answers\' holds {str(answer)[:100]!r}; expected strings or {{"start", "stop"}}')
        starts = [at for at in range(len(text)) if text.startswith(answer, at)]
        if not starts:
            raise row.error(f"the answer {answer!r} is not in the text; leave 'answers' empty if the text has none")
        found.append([(start, start + len(answer)) for start in starts])
    return found
