"""Losses of sequences of labels whose neighbours count: linear-chain CRF and MEMM.

Shapes: b rows, n positions, L labels. transitions [L, L] are scores from row to column; there are none for the start
and the stop of a sequence. The formulas are those of bert4keras, which has quirks where a mask is not on the right:
`crf_losses` and `memm_losses` first move the real positions of a row to its left. Knows tensors only.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def crf_losses(scores: Tensor, labels: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Return the negative log-likelihood [b] of the right labels in a CRF (Lafferty et al. 2001).

    scores: [b, n, L].   labels: [b, n], any number where mask [b, n] is False.
    A row costs what it costs without its masked positions, wherever these are; one without real positions costs 0.
    """
    scores, labels, mask = align_left(scores, labels, mask)
    right = F.one_hot(labels, scores.shape[-1]).to(scores.dtype)
    losses = log_partition(scores, transitions, mask) - path_score(scores, right, transitions, mask)
    return losses * mask.any(1)


def memm_losses(scores: Tensor, labels: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Return the loss of each real position in a MEMM that runs both ways [b, n]: as `align_left` orders them, then 0.

    It is the mean of the two directions' cross-entropy.
    """
    scores, labels, mask = align_left(scores, labels, mask)
    right = F.one_hot(labels, scores.shape[-1]).to(scores.dtype)
    forward, backward = (
        F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        for logits in memm_logits(scores, right, transitions, mask)
    )
    return (forward + backward) / 2 * mask


def align_left(scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the real positions of each row to its left, in their order; scores and labels of others become 0."""
    order = (~mask).long().argsort(dim=1, stable=True)
    mask = mask.gather(1, order)
    scores = scores.gather(1, order[..., None].expand_as(scores)).masked_fill(~mask[..., None], 0)
    return scores, labels.gather(1, order).masked_fill(~mask, 0), mask


def log_partition(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Return the logarithm [b] of the sum over all sequences of labels; a masked position leaves it as it is.

    The first position counts even if it is masked.
    """
    states, total = scores[:, 0], torch.zeros_like(scores[:, 0, 0])
    for place in range(1, scores.shape[1]):
        reached = torch.logsumexp(states[:, :, None] + transitions, 1) + scores[:, place]
        states = torch.where(mask[:, place, None], reached, states)
        # States that stay small keep float32 exact in long rows.
        largest = states.detach().amax(1)
        states, total = states - largest[:, None], total + largest
    return torch.logsumexp(states, 1) + total


def path_score(scores: Tensor, right: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Return the score [b] of the right labels, given as shares [b, n, L] that sum to 1; finite scores only."""
    right = right * mask[..., None]
    between = torch.einsum("bni,ij,bnj->b", right[:, :-1], transitions, right[:, 1:])
    return torch.einsum("bni,bni->b", scores, right) + between


def memm_logits(scores: Tensor, right: Tensor, transitions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits [b, n, L] forwards and backwards, each position knowing the right label before or after it.

    They are the mean of the position's scores and of the transitions; at the first, or last, position the scores.
    right: as in `path_score`.   mask: real positions must be on the left.
    """
    after = (scores[:, 1:] + right[:, :-1] @ transitions) / 2
    before = (scores[:, :-1] + right[:, 1:] @ transitions.T) / 2
    before = torch.where(mask[:, 1:, None], before, scores[:, :-1])
    return torch.cat([scores[:, :1], after], 1), torch.cat([before, scores[:, -1:]], 1)
