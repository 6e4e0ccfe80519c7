"""Losses on the vectors of pairs of texts. Each returns one number for every pair.

vectors: [pairs, 2, features], not normalized.   real: [pairs], False where a row only fills a batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
