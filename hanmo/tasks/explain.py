"""Which characters a classification rests on: integrated gradients (Sundararajan et al., arXiv 1703.01365).

    explanation = explain(hanmo.load("run"), "这是一本很好看的书")
    explanation.characters      [("这", 0.01), …]
    print(explanation)          rich.print colours the text in a terminal
    explanation.to_html()       the same picture for a browser

The token vectors go from 0 to their values in `points` steps; the gradients of the label's probability along the way
times the vectors are what each token adds to it. bert4keras's example multiplies each gradient by the vector of its
step, not by the final one, so its sums do not add up to the change of the probability.
"""

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text
from torch import Tensor

from hanmo.errors import ConfigError
from hanmo.tasks.classify import Classify
from hanmo.tasks.pipeline import TaskPipeline
from hanmo.tasks.rows import as_rows
from hanmo.tasks.steps import evaluating
from hanmo.tasks.task import Batch, Example, TaskNetwork
from hanmo.tasks.windows import merge_tokens, tokenize

_BY = ("sum", "length", "largest")


@dataclass(frozen=True)
class Explanation:
    """The characters of a text, or of two, with what each adds to the prediction.

    label: what is explained; "score" for a regression.   probability: of it, or the score.
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
    """Attribute a prediction of kind "classify" to the characters of its text.

    label: None explains the most probable one.   points: steps from 0 to the token vectors.
    by: "sum", what a token adds to the probability, negative where it lowers it, shared by its characters; or as in
    bert4keras "length" (2-norm) or "largest" (largest absolute value) of its vector, scaled to 0 … 1.
    A long text is explained window by window.
    Raises ConfigError for another kind, an unknown label or `by`, and fewer than 2 points.
    """
    task, network = pipeline.task, pipeline.network
    if not isinstance(task, Classify):
        raise ConfigError(f"the kind is {task.config.kind!r}; explain takes the folder of a task of kind 'classify'")
    if points < 2:
        raise ConfigError(f"points is {points}; expected 2 or more")
    if by not in _BY:
        raise ConfigError(f"by is {by!r}; expected one of {', '.join(_BY)}")
    number, name, probability = _explained(pipeline, text, label)
    (row,) = as_rows([text])
    tokens = tuple(tokenize(task.tokenizer, each, offsets=True) for each in task.texts(row))
    windows = task.windows(tokens)
    example = Example(row, tokens, windows)
    with evaluating(network):
        found = [token_scores(_attribute(network, example, place, number, points), by) for place in range(len(windows))]
    scores = []
    for place, each in enumerate(tokens):
        characters = [0.0] * len(each.text)
        for score, (start, stop) in zip(merge_tokens(windows, found, text=place), each.offsets, strict=True):
            for at in range(start, stop):
                characters[at] = float(score) / (stop - start if by == "sum" else 1)
        scores.append(characters)
    return Explanation(tuple(each.text for each in tokens), name, probability, tuple(scores))


def _explained(pipeline: TaskPipeline, text: Any, label: str | None) -> tuple[int, str, float]:
    """Return the output to explain: its number, its name and its value."""
    result = pipeline.predict(text if isinstance(text, str | Mapping) else [text])
    result = result[0] if isinstance(result, list) else result
    if pipeline.task.config.form == "regression":
        return 0, "score", result["score"]
    odds = result["probabilities"]
    name = max(odds, key=odds.__getitem__) if label is None else label
    if name not in odds:
        raise ConfigError(f"label is {name!r}; expected one of {', '.join(odds)}")
    return pipeline.labels.index(name), name, odds[name]


def _attribute(network: TaskNetwork, example: Example, place: int, number: int, points: int) -> NDArray[np.float64]:
    """Return the attributions of one window [n, size]."""
    task, device = network.task, network.backbone.token.weight.device
    arrays = task.collate([(example, example.windows[place])], targets=False)
    batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def value(vectors: Tensor) -> Tensor:
        logits: Tensor = with_vectors(network, batch, vectors)[0].float() / task.config.temperature
        if task.config.form == "regression":
            return logits[number]
        return (logits.softmax(-1) if task.config.form == "single" else logits.sigmoid())[number]

    vectors = network.backbone.token(batch["ids"]).detach()
    gradients = path_gradients(value, vectors, points)[:, 0]
    weights = torch.full((points,), 1 / (points - 1), dtype=gradients.dtype, device=gradients.device)
    weights[[0, -1]] /= 2  # trapezoids
    mean = torch.einsum("p,pnd->nd", weights, gradients)
    found: NDArray[np.float64] = (mean * vectors[0]).double().cpu().numpy()
    return found


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
