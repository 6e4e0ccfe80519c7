"""Pointers: a score for every pair of places in a text, their losses, and the best pairs.

GlobalPointer (kexue.fm/archives/8373), EfficientGlobalPointer (8877), GPLinker (8888, 8926) and the multi-label
softmax losses (7359). Knows vectors, masks and places; knows no texts and no labels.
"""

from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np
import torch
from array_api_compat import torch as xp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.model import Output
from hanmo.nn.attention import rotate
from hanmo.nn.linear import Linear
from hanmo.nn.position import sinusoidal
from hanmo.tasks.task import Batch, pad

Pair: TypeAlias = tuple[int, int]
"""Places of the first and of the last token of something."""


class GlobalPointer(nn.Module):
    """q · k / √head_size of every two places, for each head; q and k are rotated by their places (RoPE).

    size: of the vectors.   head_size: even.   upper: whether the second place may not be before the first.
    """

    def __init__(
        self, size: int, heads: int, *, head_size: int = 64, rope: bool = True, upper: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.head_size, self.rope, self.upper = heads, head_size, rope, upper
        self._make(size, bias)

    def _make(self, size: int, bias: bool) -> None:
        self.dense = Linear(size, 2 * self.heads * self.head_size, bias=bias)  # of each head: its query, then its key

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [b, n, size].   mask: [b, n], True where real.   Returns [b, heads, n, n], -inf where no pair may be."""
        query, key = self.dense(x).unflatten(-1, (self.heads, 2, -1)).permute(3, 0, 2, 1, 4)  # [b, h, n, s]
        return self._masked(self._products(query, key), mask)

    def _products(self, query: Tensor, key: Tensor) -> Tensor:
        if self.rope:
            places = torch.arange(query.shape[2], device=query.device)[None]
            dtype = torch.promote_types(query.dtype, torch.float32)
            table = sinusoidal(places, self.head_size, xp, dtype=dtype)
            query, key = rotate(query, table), rotate(key, table)
        return query @ key.transpose(-1, -2) / self.head_size**0.5

    def _masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        kept = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        if self.upper:
            kept = kept.triu()
        if mask is not None:
            kept = kept & mask[:, None, :, None] & mask[:, None, None, :]
        return scores.masked_fill(~kept, float("-inf"))


class EfficientGlobalPointer(GlobalPointer):
    """One product for all heads, and for each head a bias of the first place and one of the second."""

    def _make(self, size: int, bias: bool) -> None:
        self.dense = Linear(size, 2 * self.head_size, bias=bias)  # even: query, odd: key
        self.biases = Linear(2 * self.head_size, 2 * self.heads, bias=bias)  # even: of the second place, odd: the first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        both = self.dense(x)
        query, key = both.unflatten(-1, (-1, 2)).movedim(-1, 0)[:, :, None]  # [b, 1, n, s]
        second, first = (self.biases(both) / 2).unflatten(-1, (-1, 2)).permute(3, 0, 2, 1)  # [b, h, n]
        scores = self._products(query, key) + second[:, :, None] + first[..., None]
        return self._masked(scores, mask)


POINTERS: dict[str, type[GlobalPointer]] = {
    "efficient_global_pointer": EfficientGlobalPointer,
    "global_pointer": GlobalPointer,
}


class GPLinker(nn.Module):
    """Pointers that find spans, and pointers between the first and between the last tokens of two spans.

    spans, links: heads of these pointers.   upper: whether links go forward only.
    """

    def __init__(self, size: int, spans: int, links: int, *, head_size: int, upper: bool) -> None:
        super().__init__()
        self.spans = EfficientGlobalPointer(size, spans, head_size=head_size)
        self.first, self.last = (
            EfficientGlobalPointer(size, links, head_size=head_size, rope=False, upper=upper) for _ in range(2)
        )

    def forward(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores [b, spans, n, n] and twice [b, links, n, n]."""
        first, second, third = (part(output.hidden, batch["mask"]) for part in (self.spans, self.first, self.last))
        return first, second, third


# Losses


def multilabel_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return log(1 + Σ exp(wrong)) + log(1 + Σ exp(-right)) over the last axis (kexue.fm/archives/7359).

    scores: [..., classes]; those that are -inf are left out.   targets: the same shape, True or from 0 to 1 (9064).
    """
    targets, kept = targets.to(scores.dtype), scores != float("-inf")
    left_out = torch.full_like(scores, float("-inf"))
    wrong = torch.where(kept, scores, left_out) + torch.log(1 - targets)
    right = torch.where(kept, -scores, left_out) + torch.log(targets)
    return log_of_sum(wrong) + log_of_sum(right)


def sparse_multilabel_loss(scores: Tensor, numbers: Tensor, *, padding: int | None = None) -> Tensor:
    """Return `multilabel_loss` where the right classes are given by their numbers, each once.

    scores: [..., classes].   numbers: [..., any].   padding: class that fills `numbers` up and is left out.
    """
    scores = F.pad(scores, (0, 1), value=float("-inf"))
    if padding is not None:
        scores = scores.index_fill(-1, torch.tensor(padding, device=scores.device), float("-inf"))
    right = scores.gather(-1, numbers)
    right = torch.where(right == float("-inf"), right, -right)
    return log_of_sum(scores.scatter(-1, numbers, float("-inf"))) + log_of_sum(right)


def pointer_loss(
    scores: Tensor, pairs: Tensor, *, dense: bool = False, weights: Sequence[float] | None = None
) -> Tensor:
    """Return the multi-label loss of each row [b].

    scores: [b, heads, n, n].   pairs: [b, heads, any, 2], right pairs, filled up with (0, 0), which is never right.
    The sum over the heads without the pair (0, 0), as GPLinker is trained; or, dense, the mean with it.
    weights: factor of the loss of each head.
    """
    numbers = pairs[..., 0] * scores.shape[-1] + pairs[..., 1]
    flat = scores.flatten(2)
    factors = torch.ones_like(flat[0, :, 0]) if weights is None else torch.tensor(weights).to(flat)
    if not dense:
        return (sparse_multilabel_loss(flat, numbers, padding=0) * factors).sum(1)
    targets = torch.zeros_like(flat).scatter(-1, numbers, 1.0)
    targets[..., 0] = 0
    return (multilabel_loss(flat, targets) * factors).mean(1)


def linker_loss(
    outputs: Sequence[Tensor],
    batch: Batch,
    *,
    spans: Sequence[float] | None = None,
    links: Sequence[float] | None = None,
) -> Tensor:
    """Return the loss of a GPLinker's three pointers [b]; spans, links: factors of the loss of their heads."""
    parts = zip(outputs, ("spans", "first", "last"), (spans, links, links), strict=True)
    return torch.stack([pointer_loss(each.float(), batch[name], weights=w) for each, name, w in parts]).sum(0)


def log_of_sum(x: Tensor) -> Tensor:
    """log(1 + Σ exp(x)) over the last axis; 0, without a gradient, if all are -inf."""
    return torch.logsumexp(F.pad(x, (0, 1)), -1)


# Targets and results


def pair_array(pairs: Sequence[Collection[Pair]]) -> NDArray[np.int64]:
    """Return the pairs of each head as [heads, most, 2] for `pointer_loss`."""
    return pad([np.array(sorted(some) or [(0, 0)], np.int64).reshape(-1, 2) for some in pairs])


def best_pairs(
    scores: Tensor, *, above: float, start: int, stop: int, limit: int | None = None
) -> list[tuple[int, int, int, float]]:
    """Return (head, first, last, score) of pairs within the places start … stop - 1, the best first.

    scores: [heads, n, n].   above: floor of the score.   limit: of their number.
    """
    inner = scores[:, start:stop, start:stop]
    count = inner.shape[-1]
    values, places = inner.flatten().topk(min(limit or inner.numel(), inner.numel()))
    found = zip(values.tolist(), places.tolist(), strict=True)
    return [
        (place // count**2, start + place // count % count, start + place % count, value)
        for value, place in found
        if value > above
    ]


def decode_triples(
    spans: Tensor, first: Tensor, last: Tensor, *, above: float, start: int, stop: int, limit: int | None = None
) -> list[tuple[Pair, int, Pair, float]]:
    """Return (subject, predicate, object, score) of every triple whose four scores are above a floor: GPLinker's.

    spans: [2, n, n], of subjects and of objects.   first, last: [predicates, n, n].   start, stop: places of the text.
    The score is the least of the four.   limit: of the subjects, of the objects, and of each predicate's triples.
    """
    sides = [best_pairs(part[None], above=above, start=start, stop=stop, limit=limit) for part in spans]
    if not all(sides):
        return []
    subjects, objects = (torch.tensor([each[1:3] for each in side], device=spans.device) for side in sides)
    own = [torch.tensor([each[3] for each in side]).to(spans) for side in sides]
    found = []
    for predicate, (heads, tails) in enumerate(zip(first, last, strict=True)):
        links = heads[subjects[:, :1], objects[:, 0]].minimum(tails[subjects[:, 1:], objects[:, 1]])
        scores = links.minimum(own[0][:, None]).minimum(own[1])  # [subjects, objects]
        values, places = scores.flatten().topk(min(limit or scores.numel(), scores.numel()))
        for score, place in zip(values.tolist(), places.tolist(), strict=True):
            subject, other = divmod(place, len(objects))
            if score > above:
                found.append((sides[0][subject][1:3], predicate, sides[1][other][1:3], score))
    return found
