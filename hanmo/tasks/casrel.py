"""CasRel: tag the ends of subjects, and for each subject those of its objects by predicate (arXiv 1909.03227).

As in bert4keras's example (kexue.fm/archives/7161): the subject conditions a layer norm, and the probabilities are
powers of sigmoids. Knows vectors and places; knows no texts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import ModelConfig
from hanmo.model import Output
from hanmo.nn.linear import Linear
from hanmo.nn.norm import Norm
from hanmo.tasks.pointer import Pair
from hanmo.tasks.task import Arrays, Batch

SUBJECT_POWER, OBJECT_POWER = 2, 4  # few places are right
_FIRST, _LAST = 0.6, 0.5  # probabilities above which places begin and end something

Relations = list[tuple[int, Pair, Pair]]
"""(predicate, subject, object), as places of the first and the last token."""


class CasRel(nn.Module):
    """Logits of the first and the last tokens of subjects, and of the objects of a subject."""

    def __init__(self, config: ModelConfig, predicates: int) -> None:
        super().__init__()
        size = config.main.hidden_size
        self.subject = Linear(size, 2)
        stack = replace(
            config.main, condition=2 * size, condition_hidden=0, norm="layer", norm_scale=True, norm_bias=True
        )
        self.norm = Norm(stack)
        self.object = Linear(size, 2 * predicates)

    def forward(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return logits of subjects [b, n, 2], those of objects for each subject of the batch, and the vectors.

        batch: "subjects" [b, any, 2], filled up with -1; None is returned for objects if it is not there.
        """
        hidden, objects = output.hidden, None
        if "subjects" in batch:
            rows, numbers = (batch["subjects"][..., 0] >= 0).nonzero(as_tuple=True)
            objects = self.objects(hidden[rows], batch["subjects"][rows, numbers])
        return self.subject(hidden), objects, hidden

    def objects(self, hidden: Tensor, subjects: Tensor) -> Tensor:
        """hidden: [m, n, size].   subjects: [m, 2], places.   Returns logits [m, n, predicates, 2]."""
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        logits = self.object(self.norm(hidden, hidden[rows, subjects].flatten(1)))
        return logits.view(*logits.shape[:2], self.object.out_features // 2, 2)


def casrel_targets(relations: Relations, length: int, predicates: int) -> Arrays:
    """Return what `casrel_loss` needs of a window.

    "subject": [length, 2].   "subjects": [any, 2], the right ones and those that their ends would be decoded to.
    "objects": [any, length, predicates, 2], of each of these.
    """
    subject = np.zeros((length, 2), np.bool_)
    for _, (first, last), _ in relations:
        subject[first, 0] = subject[last, 1] = True
    decoded = [pair[:2] for pair in subject_pairs(subject.astype(np.float32), start=0, stop=length)]
    subjects = sorted({*decoded, *(pair for _, pair, _ in relations)}) or [(-1, -1)]
    objects = np.zeros((len(subjects), length, predicates, 2), np.bool_)
    for predicate, pair, (first, last) in relations:
        objects[subjects.index(pair), first, predicate, 0] = True
        objects[subjects.index(pair), last, predicate, 1] = True
    return {"subject": subject, "subjects": np.array(subjects), "objects": objects}


def casrel_loss(subject: Tensor, objects: Tensor, batch: Batch, *, weights: Sequence[float] | None = None) -> Tensor:
    """Return the loss of each window [b]: the subjects', and the mean of the objects' over the window's subjects.

    subject: [b, n, 2], objects: [m, n, predicates, 2], logits.   batch: with the targets of `casrel_targets`.
    Both are means over a window's tokens and the two ends; the second is a sum over predicates.
    weights: factor of the loss of each predicate.
    """
    weight = batch["mask"] / batch["mask"].sum(1, keepdim=True)
    found = (_power_loss(subject, batch["subject"], SUBJECT_POWER).mean(-1) * weight).sum(1)
    rows, numbers = (batch["subjects"][..., 0] >= 0).nonzero(as_tuple=True)
    losses = _power_loss(objects, batch["objects"][rows, numbers], OBJECT_POWER).mean(-1)
    losses = losses.sum(-1) if weights is None else losses @ torch.tensor(weights).to(losses)
    share = 1 / torch.bincount(rows, minlength=len(found)).clamp(min=1)
    return found.index_add(0, rows, (losses * weight[rows]).sum(1) * share[rows])


def subject_logits(logits: Tensor) -> Tensor:
    """Return the logits of the probabilities that the powers of sigmoids are."""
    log_p, log_rest = _log_odds(logits, SUBJECT_POWER)
    return log_p - log_rest


def _power_loss(logits: Tensor, targets: Tensor, power: int) -> Tensor:
    """Return the binary cross entropy of sigmoid(logits) ** power."""
    return -torch.where(targets, *_log_odds(logits, power))


def _log_odds(logits: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Return log p and log(1 - p) of p = sigmoid(logits) ** power."""
    log_p = power * F.logsigmoid(logits)
    return log_p, torch.log((-torch.expm1(log_p)).clamp(min=torch.finfo(logits.dtype).tiny))


def subject_pairs(odds: NDArray[np.float32], *, start: int, stop: int) -> list[tuple[int, int, float]]:
    """Return (first, last, probability) of the subjects: each first token with the nearest last one.

    odds: [n, 2].   start, stop: places of the text.   The probability is the lesser of the two ends'.
    """
    return [(first, last, odd) for first, last, _, odd in object_pairs(odds[:, None], start=start, stop=stop)]


def object_pairs(odds: NDArray[np.float32], *, start: int, stop: int) -> list[tuple[int, int, int, float]]:
    """Return (first, last, predicate, probability) of the objects, as `subject_pairs` does.

    odds: [n, predicates, 2].
    """
    inner, found = odds[start:stop], []
    for first, predicate in np.argwhere(inner[..., 0] > _FIRST).tolist():
        lasts = np.flatnonzero(inner[first:, predicate, 1] > _LAST)
        if len(lasts):
            last = first + int(lasts[0])
            odd = min(inner[first, predicate, 0], inner[last, predicate, 1])
            found.append((start + first, start + last, predicate, float(odd)))
    return found
