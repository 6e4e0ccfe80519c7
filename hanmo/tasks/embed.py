"""Embed texts as vectors whose cosine says how similar two texts are.

    {"a": …, "b": …, "score": 0.8}   form "cosent" ("label" in place of "score": 0 or 1), or form "contrastive"
    {"a": …, "b": …}                 form "infonce": pairs of similar texts
    {"text": …}                      form "simcse"; dev rows are pairs with scores
    → {"vector"} of a text, {"score"} of a pair: the cosine

The vector of a long text is the mean of its windows' vectors, by their length. Losses take vectors [pairs, 2,
features], not normalized, and return a number for each pair; real [pairs] is False where a row only fills a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, DataError
from hanmo.model import Model, Output
from hanmo.tasks.classify import pool
from hanmo.tasks.config import TaskConfig, is_number
from hanmo.tasks.divergence import Logits
from hanmo.tasks.rows import Row, texts_of
from hanmo.tasks.scores import pearson, spearman
from hanmo.tasks.task import Arrays, Batch, Example, Result, Task, TaskNetwork, pad
from hanmo.tasks.windows import Part, Window, tokenize
from hanmo.tokenizers.protocol import Tokenizer

_QUERIES = 256  # compared with all vectors at once


class EmbedHead(nn.Module):
    """One vector of a text; with whitening, (vector + bias) kernel."""

    kernel: Tensor
    bias: Tensor

    def __init__(self, config: ModelConfig, *, pooling: str, whitening: int) -> None:
        super().__init__()
        self.pooling, self.whitening = pooling, whitening
        if whitening:
            self.register_buffer("kernel", torch.zeros(config.main.hidden_size, whitening))
            self.register_buffer("bias", torch.zeros(config.main.hidden_size))

    def forward(self, output: Output, mask: Tensor) -> Tensor:
        """Return vectors [texts, features], not normalized."""
        vector = pool(output, mask, self.pooling)
        return (vector + self.bias) @ self.kernel if self.whitening else vector

    def set_whitening(self, kernel: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        """Take what `fit_whitening` returned."""
        self.kernel.copy_(torch.from_numpy(kernel))
        self.bias.copy_(torch.from_numpy(bias))


class Embed(Task):
    """kind "embed". A row of its batches has one text or two: "ids" [windows, texts, n].

    options: "scale" of cosines in a loss (20), "margin" of distances in "contrastive" (0.5), "positive": least score
    of a similar pair (1), "measure": "spearman" or "mrr", "pooler": activation of the pooler in place of the
    checkpoint's (SimBERT: "linear").   "whitening": features after whitening; `EmbedPipeline.whiten` sets it.
    """

    forms = ("cosent", "contrastive", "infonce", "simcse")
    pooled = True
    labelled = False
    options: ClassVar[dict[str, tuple[str, ...]]] = {
        "margin": ("contrastive",),
        "measure": (),
        "pooler": ("pooler",),
        "positive": (),
        "scale": ("cosent", "infonce", "simcse"),
        "whitening": (),
    }
    unit = True

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.scale, self.margin, self.positive = (
            self.number_of(name, default) for name, default in (("scale", 20), ("margin", 0.5), ("positive", 1))
        )
        self.whitening = int(self.number_of("whitening", 0))
        self.main_score = self.choice_of("measure", "spearman", "mrr")

    @classmethod
    def settle(cls, config: TaskConfig, rows: Sequence[Row]) -> TaskConfig:
        if "whitening" in config.options:
            raise ConfigError("the option 'whitening' is not trained; train without it, then call `whiten` on the task")
        scored = any(score_of(row) is not None for row in rows)
        if not config.form:
            paired = "a" in rows[0].data
            config = replace(config, form="simcse" if not paired else "cosent" if scored else "infonce")
        measure = "mrr" if config.form == "infonce" and not scored else "spearman"
        return super().settle(replace(config, options={"measure": measure, **config.options}), rows)

    @classmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        texts = texts_of(row)
        if config.form != "simcse" and len(texts) < 2:
            raise row.error(f"it has one text; {config.form!r} needs a pair, 'a' and 'b'")
        if score_of(row) is None and config.form in ("cosent", "contrastive"):
            raise row.error(f"'score' is missing; {config.form!r} needs one for each pair")

    @classmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        return ()

    def encode(self, row: Row) -> Example:
        tokens = tuple(tokenize(self.tokenizer, text) for text in self.texts(row))
        sides = [self.windows([each]) for each in tokens]
        count = max(map(len, sides))  # windows of the text that has fewer are repeated
        return Example(row, tokens, [_join([side[at % len(side)] for side in sides]) for at in range(count)])

    def train_windows(self, example: Example) -> Sequence[Window]:
        if self.config.form == "simcse":
            return [_join([window, window]) for each in example.tokens for window in self.windows([each])]
        score = score_of(example.row)
        dissimilar = self.config.form == "infonce" and score is not None and score < self.positive
        return [] if dissimilar else example.windows

    def target(self, example: Example, window: Window) -> Arrays:
        score = score_of(example.row)
        return {"score": np.array(1.0 if score is None else score, np.float32)}

    def collate(self, windows: Sequence[tuple[Example, Window]], *, targets: bool = True) -> Arrays:
        count = max(max(window.segments) for _, window in windows) + 1
        parts = [_split(window, count) for _, window in windows]
        batch = super().collate(windows, targets=targets)
        batch["ids"] = pad(
            [pad(ids, self.tokenizer.special.pad or 0) for ids in parts], self.tokenizer.special.pad or 0
        )
        batch["mask"] = pad([pad([np.ones(len(each), np.bool_) for each in ids]) for ids in parts])
        batch["segments"] = np.zeros_like(batch["ids"])
        return batch

    def network(self, config: ModelConfig) -> ModelConfig:
        made = super().network(config)
        dropout = config.main.dropout if self.config.dropout is None else self.config.dropout
        if self.config.form == "simcse" and not (dropout or config.main.attention_dropout):
            raise ConfigError("the model has no dropout, so SimCSE would compare equal vectors; set dropout=0.1")
        chosen = self.config.options.get("pooler")
        return replace(made, pool=chosen) if chosen and made.pool != "none" else made

    def head(self, config: ModelConfig) -> EmbedHead:
        return EmbedHead(config, pooling=self.pooling, whitening=self.whitening)

    def forward(self, backbone: Model, head: nn.Module, batch: Batch) -> Tensor:
        ids, segments, mask = (batch[name].flatten(0, 1) for name in ("ids", "segments", "mask"))
        mask = mask | ~mask.any(-1, keepdim=True)  # an absent text; it has no real token to attend to
        output = self.read(backbone, {"ids": ids, "segments": segments, "mask": mask})
        vectors: Tensor = head(output, mask)
        return vectors.view(*batch["ids"].shape[:2], -1)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        vectors, score, real = outputs.float(), batch["score"], batch["weight"] > 0
        if self.config.form == "cosent":
            return cosent(vectors, score, real, scale=self.scale)
        if self.config.form == "contrastive":
            return contrastive(vectors, score >= self.positive, margin=self.margin)
        return infonce(vectors, batch["ids"], real, scale=self.scale)

    def infer(self, network: TaskNetwork, batch: Batch) -> Sequence[NDArray[np.float32]]:
        found: NDArray[np.float32] = network(batch).float().cpu().numpy()
        return list(found)

    def logits(self, outputs: Tensor, batch: Batch) -> Sequence[Logits]:
        return [Logits(outputs, "normal", mask=batch["mask"].any(-1))]

    def decode(self, example: Example, outputs: Sequence[NDArray[np.float32]]) -> Result:
        vectors = [self._vector(example, outputs, text) for text in range(len(example.tokens))]
        if len(vectors) == 1:
            return {"vector": vectors[0].tolist()}
        result: Result = {"score": float(vectors[0] @ vectors[1])}
        if self.main_score == "mrr":
            result["vectors"] = [vector.tolist() for vector in vectors]
        return result

    def _vector(self, example: Example, outputs: Sequence[NDArray[np.float32]], text: int) -> NDArray[np.float64]:
        """Return the vector of one text of a row, of length 1 unless `unit` is False."""
        parts = [window.parts[text] for window in example.windows]
        by_start = {part.start: (out[text], max(1, len(part))) for part, out in zip(parts, outputs, strict=True)}
        vectors, lengths = zip(*by_start.values(), strict=True)
        mean = np.average(np.array(vectors, np.float64), axis=0, weights=lengths)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12) if self.unit else mean)

    def measure(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
        found: dict[str, float] = {}
        scores = [score_of(row) for row in rows]
        for row, score in zip(rows, scores, strict=True):
            if len(self.texts(row)) < 2 or (score is None and self.main_score == "spearman"):
                raise row.error("dev rows of 'embed' need 'a', 'b' and a 'score'; give dev data that has them")
        if self.main_score == "mrr":
            similar = [at for at, score in enumerate(scores) if score is None or score >= self.positive]
            found["mrr"] = _reciprocal_rank(
                [self.texts(rows[at])[1] for at in similar], [results[at] for at in similar]
            )
        else:
            true = [score for score in scores if score is not None]
            cosines = [result["score"] for result in results]
            found |= {"spearman": spearman(true, cosines), "pearson": pearson(true, cosines)}
        return found


# Losses


def cosines(vectors: Tensor) -> Tensor:
    """Return the cosine of each pair [pairs]."""
    unit = F.normalize(vectors, dim=-1)
    return (unit[:, 0] * unit[:, 1]).sum(-1)


def cosent(vectors: Tensor, score: Tensor, real: Tensor, *, scale: float = 20.0) -> Tensor:
    """Return log(1 + Σ exp(scale (cos_i - cos_j))) over all pairs i, j with score_i < score_j, at every place [pairs].

    It depends on the order of the scores alone (kexue.fm/archives/8847).
    """
    cosine = scale * cosines(vectors)
    ordered = (score[:, None] < score[None, :]) & real[:, None] & real[None, :]
    differences = (cosine[:, None] - cosine[None, :])[ordered]
    return torch.cat([cosine.new_zeros(1), differences]).logsumexp(0).expand(len(cosine))


def contrastive(vectors: Tensor, similar: Tensor, *, margin: float = 0.5) -> Tensor:
    """Return d² / 2 where a pair is similar, else max(0, margin - d)² / 2, with d = 1 - cos [pairs].

    Hadsell et al. 2006, with the distance and margin of sentence-transformers.
    """
    distance = 1 - cosines(vectors)
    return 0.5 * torch.where(similar, distance**2, (margin - distance).relu() ** 2)


def infonce(vectors: Tensor, ids: Tensor, real: Tensor, *, scale: float = 20.0) -> Tensor:
    """Return the mean cross entropy of finding each text of a pair by the other [pairs].

    Candidates are all texts of the batch but the text itself, as in SimBERT (there with scale 30); texts with the same
    ids [pairs, 2, n] as either of the pair are no negatives.
    """
    unit = F.normalize(vectors, dim=-1).flatten(0, 1)
    texts, usable = ids.flatten(0, 1), real.repeat_interleave(2)
    place = torch.arange(len(unit), device=unit.device)
    other = place ^ 1
    equal = (texts[:, None] == texts[None, :]).all(-1)
    hidden = equal | equal[other] | ~usable[None, :]
    hidden = hidden.index_put((place, other), torch.zeros_like(usable)).index_put(
        (place, place), torch.ones_like(usable)
    )
    scores = (scale * unit @ unit.T).masked_fill(hidden, -torch.inf)
    return F.cross_entropy(scores, other, reduction="none").view(-1, 2).mean(-1)


# Rows and results


def score_of(row: Row) -> float | None:
    """Return the similarity of a pair, its "score" or "label"; None without one. Raises DataError for no number."""
    key = "score" if "score" in row.data else "label"
    value = row.data.get(key)
    if value is None:
        return None
    if isinstance(value, str) and value.removeprefix("-").isdecimal():
        value = int(value)
    if not is_number(value):
        raise row.error(f"{key!r} is {str(value)[:100]!r}; expected a finite number")
    return float(value)


def _join(windows: Sequence[Window]) -> Window:
    """Put windows of single texts into one; its segments tell the text, and parts are relative to it."""
    ids = [number for window in windows for number in window.ids]
    segments = [text for text, window in enumerate(windows) for _ in window.ids]
    parts, at = [], 0
    for window in windows:
        part = window.parts[0]
        parts.append(Part(at + part.at, part.start, part.stop))
        at += len(window)
    return Window(ids, segments, tuple(parts))


def _split(window: Window, count: int) -> list[NDArray[np.int64]]:
    ids, segments = np.array(window.ids), np.array(window.segments)
    return [ids[segments == text] for text in range(count)]


def fit_whitening(vectors: NDArray[np.float64], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (kernel [features, size], bias [features]) that give (vectors + bias) kernel the covariance I.

    Raises DataError if the vectors vary in fewer than `size` directions.
    """
    mean = vectors.mean(0)
    centred = vectors - mean
    directions, scales, _ = np.linalg.svd(centred.T @ centred / max(1, len(vectors) - 1))
    rank = int((scales > scales[0] * 1e-10).sum())
    if size > rank:
        raise DataError(f"size is {size}, but the {len(vectors)} texts have a rank of {rank}; give more texts, or less")
    return directions[:, :size] / np.sqrt(scales[:size]), -mean


def nearest(queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
    """Return for each query the k rows of vectors with the highest product, as (row, product), best first."""
    found: list[list[tuple[int, float]]] = []
    k = min(k, len(vectors))
    for start in range(0, len(queries), _QUERIES):
        for products in queries[start : start + _QUERIES] @ vectors.T:
            best = np.argpartition(-products, k - 1)[:k] if k else np.zeros(0, int)
            order = best[np.lexsort((best, -products[best]))]
            found.append([(int(row), float(products[row])) for row in order])
    return found


def _reciprocal_rank(texts: Sequence[str], results: Sequence[Result]) -> float:
    """Return the mean of 1 / rank of each b among the different texts b, by its cosine with a; ties count half."""
    if not results:
        return 0.0
    first = np.array([result["vectors"][0] for result in results])
    second = np.array([result["vectors"][1] for result in results])
    kept = [texts.index(text) for text in dict.fromkeys(texts)]
    total = 0.0
    for at, text in enumerate(texts):
        others = second[[place for place in kept if texts[place] != text]] @ first[at]
        own = second[at] @ first[at]
        total += 1 / (1 + float((others > own).sum() + (others == own).sum() / 2))
    return total / len(texts)
