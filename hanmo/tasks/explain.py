"""Which characters a prediction rests on: integrated gradients (Sundararajan et al., arXiv 1703.01365).

    explanation = explain(hanmo.load("run"), "这是一本很好看的书")
    explanation.characters      [("这", 0.01), …]
    print(explanation)          rich.print colours the text in a terminal
    explanation.to_html()       the same picture for a browser

The token vectors go from 0 to their values in `points` steps; the gradients of the label's probability along the way
times the vectors are what each token adds to it. Of spans it is the mean probability of those that were found.
bert4keras's example multiplies each gradient by the vector of its step, not by the final one, so its sums do not add up
to the change of the probability.
"""

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text
from torch import Tensor

from hanmo.errors import ConfigError, DataError
from hanmo.tasks.classify import Classify
from hanmo.tasks.pipeline import TaskPipeline
from hanmo.tasks.rows import as_rows
from hanmo.tasks.spans import Spans
from hanmo.tasks.tag import Tag
from hanmo.tasks.task import Batch, Example, Result, TaskNetwork
from hanmo.tasks.windows import deciding, merge_tokens, tokenize

_BY = ("sum", "length", "largest")


@dataclass(frozen=True)
class Explanation:
    """The characters of a text, or of two, with what each adds to the prediction.

    label: what is explained; "score" for a regression.   probability: of it, or the score; the mean of several spans.
    scores: of each character of each text; characters without a token have 0.
    """

    texts: tuple[str, ...]
    label: str
    probability: float
    scores: tuple[list[float], ...]

    @property
    def characters(self) -> list[tuple[str, float]]:
        """Every character with its score; those of a second text follow the first's."""
        return [
            pair
            for text, scores in zip(self.texts, self.scores, strict=True)
            for pair in zip(text, scores, strict=True)
        ]

    def to_html(self) -> str:
        """Return a page that shows each character on red, where it speaks for the label, or on blue."""
        lines = []
        for text, scores in zip(self.texts, self._shades(), strict=True):
            spans = (
                f'<span style="background:rgba({_rgb(shade)},{abs(shade):.2f})">{html.escape(character)}</span>'
                for character, shade in zip(text, scores, strict=True)
            )
            lines.append(f'<p style="font-size:1.4em;white-space:pre-wrap">{"".join(spans)}</p>')
        title = html.escape(f"{self.label} {self.probability:.3f}")
        return (
            f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n<h3>{title}</h3>\n'
            + "\n".join(lines)
            + "\n"
        )

    def __rich__(self) -> Text:
        """Show the text in a terminal, in the colours of `to_html`."""
        shown = Text(f"{self.label} {self.probability:.3f}")
        for text, scores in zip(self.texts, self._shades(), strict=True):
            shown.append("\n")
            for character, shade in zip(text, scores, strict=True):
                faded = [round(255 - (255 - int(part)) * abs(shade)) for part in _rgb(shade).split(",")]
                shown.append(character, Style(color="black", bgcolor=f"rgb({','.join(map(str, faded))})"))
        return shown

    def _shades(self) -> list[list[float]]:
        """Return the scores divided by the largest."""
        largest = max((abs(score) for scores in self.scores for score in scores), default=0.0) or 1.0
        return [[score / largest for score in scores] for scores in self.scores]


def explain(
    pipeline: TaskPipeline,
    text: str | tuple[str, str] | Mapping[str, Any],
    *,
    label: str | None = None,
    points: int = 20,
    by: str = "sum",
) -> Explanation:
    """Attribute a prediction of kind "classify", "few", "tag" or "spans" to the characters of its text.

    label: None explains the most probable one, or the spans of all labels.   points: steps from 0 to the token vectors.
    by: "sum", what a token adds to the probability, negative where it lowers it, shared by its characters; or as in
    bert4keras "length" (2-norm) or "largest" (largest absolute value) of its vector, scaled to 0 … 1.
    A long text is explained window by window.
    Raises ConfigError for another kind, an unknown label or `by`, and fewer than 2 points; DataError for a text in
    which no such span was found.
    """
    task, network = pipeline.task, pipeline.network.in_torch()
    if not isinstance(task, Classify | Tag | Spans):
        raise ConfigError(f"the kind is {task.config.kind!r}; explain takes the kinds classify, few, tag and spans")
    if points < 2:
        raise ConfigError(f"points is {points}; expected 2 or more")
    if by not in _BY:
        raise ConfigError(f"by is {by!r}; expected one of {', '.join(_BY)}")
    if label not in (None, *task.config.labels):
        known = ", ".join(task.config.labels) or "none for a regression"
        raise ConfigError(f"label is {label!r}; expected {'one of ' * bool(task.config.labels)}{known}")
    (row,) = as_rows([text])
    example = task.encode(row)
    tokens = tuple(tokenize(task.tokenizer, each, offsets=True) for each in task.texts(row))
    (result,) = pipeline.predict([text])
    if isinstance(task, Classify):
        explained = _of_class(task, result, label)
    else:
        explained = _of_spans(task, example, result, label)
    numbers = range(len(example.windows))
    found = [_attribute(network, example, number, explained.value, points) for number in numbers]
    probability = sum(value for _, value in found) if explained.probability is None else explained.probability
    reduced = [token_scores(attributions, by) for attributions, _ in found]
    scores = []
    for place, each in enumerate(tokens):
        characters = [0.0] * len(each.text)
        for score, (start, stop) in zip(merge_tokens(example.windows, reduced, text=place), each.offsets, strict=True):
            for at in range(start, stop):
                characters[at] = float(score) / (stop - start if by == "sum" else 1)
        scores.append(characters)
    return Explanation(tuple(each.text for each in tokens), explained.name, probability, tuple(scores))


class _Explained(NamedTuple):
    """What is explained.

    probability: None is the sum of the windows' values.   value: from the outputs of a window and its number.
    """

    name: str
    probability: float | None
    value: Callable[[Any, int], Tensor]


def _of_class(task: Classify, result: Result, label: str | None) -> _Explained:
    """Explain a label, or the score of a regression."""
    form = task.config.form
    odds = {"score": result["score"]} if form == "regression" else result["probabilities"]
    name = max(odds, key=odds.__getitem__) if label is None else label
    place = list(odds).index(name)

    def value(outputs: Tensor, number: int) -> Tensor:
        logits = outputs[0].float() / task.config.temperature
        if form != "regression":
            logits = logits.softmax(-1) if form == "single" else logits.sigmoid()
        return logits[place]

    return _Explained(name, odds[name], value)


def _of_spans(task: Tag | Spans, example: Example, result: Result, label: str | None) -> _Explained:
    """Explain the mean probability of the spans that were found, each in the window that decides about it."""
    places = []
    for span in result["spans"]:
        tokens = example.tokens[0].find(span["start"], span["stop"])
        decides = None if tokens is None else deciding(example.windows, *tokens)
        if label in (None, span["label"]) and tokens is not None and decides is not None:
            start, stop = example.windows[decides].parts[0].place(*tokens) or (0, 0)
            places.append((decides, task.number[span["label"]], start, stop))
    if not places:
        of = "" if label is None else f" of label {label!r}"
        raise DataError(f"no span{of} was found in the text; nothing is explained")

    def value(outputs: Any, number: int) -> Tensor:
        if isinstance(task, Tag):  # of a CRF by the scores before its transitions
            tags = torch.from_numpy(task.scheme.label_of)
            odds = outputs.scores[0].float().softmax(-1)
            found = [odds[start:stop, tags == name].sum(-1).mean() for at, name, start, stop in places if at == number]
        else:
            odds = outputs[0].float().sigmoid()
            found = [odds[name, start, stop - 1] for at, name, start, stop in places if at == number]
        return torch.stack([odds.sum() * 0, *found]).sum() / len(places)

    return _Explained(", ".join(dict.fromkeys(task.config.labels[name] for _, name, *_ in places)), None, value)


def _attribute(
    network: TaskNetwork, example: Example, number: int, value: Callable[[Any, int], Tensor], points: int
) -> tuple[NDArray[np.float64], float]:
    """Return the attributions of one window [n, size], and its value."""
    task, device = network.task, network.backbone.token.weight.device
    arrays = task.collate([(example, example.windows[number])], targets=False)
    batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def along(vectors: Tensor) -> Tensor:
        return value(with_vectors(network, batch, vectors), number)

    vectors = network.backbone.token(batch["ids"]).detach()
    gradients = path_gradients(along, vectors, points)[:, 0]
    weights = torch.full((points,), 1 / (points - 1), dtype=gradients.dtype, device=gradients.device)
    weights[[0, -1]] /= 2  # trapezoids
    mean = torch.einsum("p,pnd->nd", weights, gradients)
    found: NDArray[np.float64] = (mean * vectors[0]).double().cpu().numpy()
    with torch.no_grad():
        return found, float(along(vectors))


def with_vectors(network: TaskNetwork, batch: Batch, vectors: Tensor) -> Any:
    """Return the outputs of a batch with these token vectors [b, n, size] in place of its ids'."""
    hook = network.backbone.token.register_forward_hook(lambda module, given, output: vectors)
    try:
        return network(batch)
    finally:
        hook.remove()


def path_gradients(value: Callable[[Tensor], Tensor], vectors: Tensor, points: int) -> Tensor:
    """Return the gradients of value(x) at x = vectors · i/(points - 1) for i from 0: [points, *shape of vectors]."""
    found = []
    for share in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
        x = (vectors * share).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(x), x)
        found.append(gradient)
    return torch.stack(found)


def token_scores(attributions: NDArray[Any], by: str) -> NDArray[Any]:
    """Reduce attributions [n, size] to scores [n] by "sum", "length" or "largest"; the latter are scaled to 0 … 1."""
    if by == "sum":
        total: NDArray[Any] = attributions.sum(-1)
        return total
    scores: NDArray[Any] = np.sqrt((attributions**2).sum(-1)) if by == "length" else np.abs(attributions).max(-1)
    return (scores - scores.min()) / max(float(np.ptp(scores)), np.finfo(scores.dtype).tiny)


def _rgb(shade: float) -> str:
    return "220,50,40" if shade > 0 else "40,90,220"
