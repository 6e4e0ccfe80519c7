"""Answer questions about a passage by a masked language model: all tokens of the answer at once.

    [CLS] passage [SEP] question [SEP] [MASK] … [MASK]      → tokens of the answer, [SEP]

As bert4keras's task_reading_comprehension_by_mlm.py. Rows and results are those of read.py, with "score" for
"probability".
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.errors import TokenizerError
from hanmo.model import Model
from hanmo.tasks.read import Reading
from hanmo.tasks.rows import Row
from hanmo.tasks.task import Arrays, Batch, Example, Result, TaskNetwork
from hanmo.tasks.windows import Window, tokenize

Found = tuple[tuple[int, int] | None, float]
"""A place in the passage's tokens of a window, and its score."""


class Match:
    """A part of a passage's ids that grows by the likeliest id, of those that follow it in the passage and the end id.

    As in bert4keras's task_reading_comprehension_by_mlm.py.   done: whether the end id was chosen.
    """

    def __init__(self, passage: Sequence[int], end: int) -> None:
        self.passage, self.end = passage, end
        self.starts = list(range(len(passage)))
        self.length, self.steps, self.total = 0, 0, 0.0
        self.done = False

    def push(self, probabilities: NDArray[np.floating[Any]]) -> int:
        """Choose the next id by the probabilities of all ids [vocab]; return it."""
        following = {at: self.passage[at + self.length] for at in self.starts if at + self.length < len(self.passage)}
        allowed = sorted({self.end, *following.values()})
        chosen = allowed[int(np.argmax(probabilities[allowed]))]
        self.total += float(probabilities[chosen])
        self.steps += 1
        self.done = chosen == self.end
        if not self.done:
            self.starts = [at for at, id in following.items() if id == chosen]
            self.length += 1
        return chosen

    @property
    def place(self) -> tuple[int, int] | None:
        """The first place (start, stop) of the part in the passage; None if it is empty."""
        return (self.starts[0], self.starts[0] + self.length) if self.length else None

    @property
    def score(self) -> float:
        """Mean probability of the chosen ids."""
        return self.total / max(1, self.steps)


def vote(answers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the score of each answer by the scores s that windows give it: Σ s² / (Σ s + 1), as in bert4keras."""
    return {answer: sum(s * s for s in scores) / (sum(scores) + 1) for answer, scores in answers.items()}


class Extractive(Reading):
    """What `ReadMlm` shares with read_seq2seq.py: windows with room for an answer, targets, the vote."""

    passage = 0
    padding: ClassVar[dict[str, int]] = {"answer": -1}

    @property
    def end(self) -> int:
        """The id after an answer."""
        if self.tokenizer.special.end is None:
            raise TokenizerError("this vocabulary has no end mark, such as [SEP], which ends an answer")
        return self.tokenizer.special.end

    def encode(self, row: Row) -> Example:
        question, text = (tokenize(self.tokenizer, each, offsets=True) for each in self.texts(row))
        windows = self.windows([text, question], spare=self.max_answer + 1)
        return Example(row, (text, question), [self.with_room(window) for window in windows])

    def with_room(self, window: Window) -> Window:
        """Return the window of a passage and a question as the network reads it; all is segment 0."""
        return Window(window.ids, [0] * len(window), window.parts)

    def target(self, example: Example, window: Window) -> Arrays:
        part, ids = window.parts[0], example.tokens[0].ids
        inside = [answer for answer in self.answer_tokens(example) if part.place(*answer) is not None]
        first, stop = inside[0] if inside else (0, 0)
        answer = np.array([*ids[first:stop], self.end])
        return {"answer": answer, "weight": np.array(len(answer) / len(example.windows))}

    def head(self, config: object) -> nn.Module:
        return nn.Identity()

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        # outputs: [windows, m, vocab]. With the weights of `target` the mean is over tokens, as in bert4keras.
        answer = batch["answer"]
        logits = outputs[:, : answer.shape[1]].float().transpose(1, 2)
        losses = F.cross_entropy(logits, answer, ignore_index=-1, reduction="none").sum(-1)
        return losses / (answer >= 0).sum(-1).clamp(min=1)

    def match(self, ids: Tensor) -> Match:
        """Start the answer of a window by its ids [n], padding included."""
        at = int(self.tokenizer.special.start is not None)
        found: list[int] = ids[at:].tolist()
        return Match(found[: found.index(self.end)], self.end)

    def decode(self, example: Example, outputs: Sequence[Found]) -> Result:
        answers: dict[str, list[float]] = {}
        places: dict[str, tuple[float, tuple[int, int]]] = {}
        for window, (place, score) in zip(example.windows, outputs, strict=True):
            if place is not None:
                start = window.parts[0].start
                tokens = start + place[0], start + place[1]
                answer = self.result(example, tokens)["answer"]
                answers.setdefault(answer, []).append(score)
                places[answer] = max(places.get(answer, (-1.0, tokens)), (score, tokens))
        scores = vote(answers)
        if not scores:
            return self.result(example, None, score=0.0)
        best = max(scores, key=scores.__getitem__)
        return self.result(example, places[best][1], score=scores[best])


class ReadMlm(Extractive):
    """kind "read_mlm"."""

    output = "mlm"

    def with_room(self, window: Window) -> Window:
        if self.tokenizer.special.mask is None:
            raise TokenizerError("this vocabulary has no [MASK], in whose place an answer is read")
        masks = [self.tokenizer.special.mask] * (self.max_answer + 1)
        return Window(window.ids + masks, [0] * len(window) + [1] * len(masks), window.parts)

    def forward(self, backbone: Model, head: nn.Module, batch: Batch) -> Tensor:
        hidden = self.read(backbone, batch).hidden
        count = self.max_answer + 1  # masks, at the end of each window
        places = batch["mask"].sum(1, keepdim=True) - count + torch.arange(count, device=hidden.device)
        return backbone.logits(hidden.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])))

    def infer(self, network: TaskNetwork, batch: Batch) -> Sequence[Found]:
        found = []
        for ids, logits in zip(batch["ids"], network(batch).float(), strict=True):
            match = self.match(ids)
            for probabilities in torch.softmax(logits, -1).cpu().numpy():
                match.push(probabilities)
                if match.done:
                    break
            found.append((match.place, match.score))
        return found
