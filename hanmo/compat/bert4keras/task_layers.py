"""Layers of bert4keras 0.11.5 for tasks, as torch modules with its numbers and its quirks.

`hanmo.tasks` uses the same formulas without the quirks, which docs/tasks.md lists.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.errors import TensorMismatch
from hanmo.tasks import pointer
from hanmo.tasks.chains import log_partition, memm_logits, path_score

__all__ = [
    "ConditionalRandomField",
    "EfficientGlobalPointer",
    "GlobalPointer",
    "MaximumEntropyMarkovModel",
    "multilabel_categorical_crossentropy",
    "sparse_multilabel_categorical_crossentropy",
]

_MASKED = -1e6  # scores below it are padding
_EPSILON = 1e-7  # Keras's


class _ChainLoss(nn.Module):
    """A layer that masks scores [b, n, labels], and whose transitions the losses of these scores need.

    Weights are stored divided by lr_multiplier, and multiplied by it where they are used.
    """

    def __init__(self, lr_multiplier: float) -> None:
        super().__init__()
        self.lr_multiplier = lr_multiplier

    def _stored(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*shape)) / self.lr_multiplier)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return scores [b, n, labels] with -inf where mask [b, n] is False."""
        return inputs if mask is None else inputs.masked_fill(~mask[..., None], -torch.inf)

    def dense_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        raise NotImplementedError

    def sparse_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """y_true: numbers of the right labels [b, n], which may be floats; see `dense_loss`."""
        return self.dense_loss(F.one_hot(_numbers(y_true, y_pred), y_pred.shape[-1]).to(y_pred.dtype), y_pred)

    def dense_accuracy(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return `sparse_accuracy` for one-hot y_true [b, n, labels]."""
        return self.sparse_accuracy(y_true.argmax(-1), y_pred)

    def sparse_accuracy(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        raise NotImplementedError


class ConditionalRandomField(_ChainLoss):
    """A linear-chain CRF without scores for start and stop.

    Its quirks: a row of padding costs log(labels), and masked positions before or between real ones add transitions.
    """

    def __init__(self, labels: int, lr_multiplier: float = 1) -> None:
        super().__init__(lr_multiplier)
        self._trans = self._stored(labels, labels)

    @property
    def trans(self) -> Tensor:
        """The transitions [labels, labels], from row to column."""
        return self.lr_multiplier * self._trans

    def dense_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the negative log-likelihood of each row [b].

        y_true: shares of the labels [b, n, labels].   y_pred: what the layer returned.
        Raises TensorMismatch for one position, with which the original fails.
        """
        if y_pred.shape[1] < 2:
            raise TensorMismatch("the scores have 1 position; expected 2 or more, or use hanmo.tasks.chains.crf_losses")
        scores, mask = _unmasked(y_pred)
        return log_partition(scores, self.trans, mask) - path_score(scores, y_true, self.trans, mask)

    def sparse_accuracy(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the share of real positions whose largest score, without transitions, is right."""
        scores, mask = _unmasked(y_pred)
        return _mean(scores.argmax(-1) == _numbers(y_true, y_pred), mask)


class MaximumEntropyMarkovModel(_ChainLoss):
    """A MEMM that runs both ways. hidden_dim: of two factors of the transitions; None stores these themselves."""

    def __init__(self, labels: int, lr_multiplier: float = 1, hidden_dim: int | None = None) -> None:
        super().__init__(lr_multiplier)
        self.hidden_dim = hidden_dim
        if hidden_dim is None:
            self._trans = self._stored(labels, labels)
        else:
            self._l_trans, self._r_trans = self._stored(labels, hidden_dim), self._stored(labels, hidden_dim)

    @property
    def trans(self) -> Tensor:
        """The transitions [labels, labels], from row to column."""
        if self.hidden_dim is None:
            return self.lr_multiplier * self._trans
        return (self.lr_multiplier * self._l_trans) @ (self.lr_multiplier * self._r_trans).T

    def losses_each_way(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy over all real positions forwards and backwards; NaN without any.

        y_true: one-hot [b, n, labels].
        """
        scores, mask = _unmasked(y_pred)
        forward, backward = (
            _mean(-(y_true * F.log_softmax(logits, -1)).sum(-1), mask)
            for logits in memm_logits(scores, y_true, self.trans, mask)
        )
        return forward, backward

    def accuracies_each_way(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares of real positions that are right forwards and backwards, with the right neighbour known.

        y_true: numbers [b, n].
        """
        scores, mask = _unmasked(y_pred)
        y_true = _numbers(y_true, y_pred)
        right = F.one_hot(y_true, y_pred.shape[-1]).to(scores.dtype)
        forward, backward = (
            _mean(logits.argmax(-1) == y_true, mask) for logits in memm_logits(scores, right, self.trans, mask)
        )
        return forward, backward

    def dense_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the mean of both directions' losses, a scalar; arguments as in `losses_each_way`."""
        return sum(self.losses_each_way(y_true, y_pred), torch.zeros((), dtype=y_pred.dtype, device=y_pred.device)) / 2

    def sparse_accuracy(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the mean of `accuracies_each_way`."""
        forward, backward = self.accuracies_each_way(y_true, y_pred)
        return (forward + backward) / 2


class _Arguments:
    """The original's arguments of a pointer, and the width of its input."""

    def __init__(
        self,
        heads: int,
        head_size: int,
        RoPE: bool = True,
        use_bias: bool = True,
        tril_mask: bool = True,
        *,
        input_size: int,
    ) -> None:
        options = {"head_size": head_size, "rope": RoPE, "upper": tril_mask, "bias": use_bias}
        super().__init__(input_size, heads, **options)  # type: ignore[call-arg]


class GlobalPointer(_Arguments, pointer.GlobalPointer):
    """`hanmo.tasks.pointer.GlobalPointer` by the original's arguments."""


class EfficientGlobalPointer(_Arguments, pointer.EfficientGlobalPointer):
    """`hanmo.tasks.pointer.EfficientGlobalPointer` by the original's arguments."""


def multilabel_categorical_crossentropy(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """y_true, y_pred: [..., classes]."""
    return pointer.multilabel_loss(y_pred, y_true)


def sparse_multilabel_categorical_crossentropy(y_true: Tensor, y_pred: Tensor, mask_zero: bool = False) -> Tensor:
    """y_true: numbers of the right classes [..., any]; mask_zero: 0 is padding.   y_pred: [..., classes].

    The share of the wrong classes is kept above 1e-7, so the loss of right classes that are sure rises with their
    scores. Computed in float64, where the original's float32 has noise.
    """
    scores = y_pred.double()
    if mask_zero:
        scores = scores.index_fill(-1, torch.tensor(0, device=scores.device), -torch.inf)
    scores = F.pad(scores, (0, 1))
    chosen = scores.gather(-1, y_true)
    padding = (y_true == 0) & mask_zero
    right = pointer.log_of_sum((-chosen).masked_fill(padding, -torch.inf))
    every = scores.logsumexp(-1)
    share = 1 - torch.exp(chosen.logsumexp(-1) - every)
    return (right + every + torch.log(share.clamp(_EPSILON, 1))).to(y_pred.dtype)


def _numbers(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return numbers of labels as integers [b, n]."""
    return y_true.reshape(y_pred.shape[:-1]).long()


def _unmasked(y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores with 0 at padding [b, n, labels], and the mask [b, n] of real positions."""
    mask = (y_pred > _MASKED).all(-1)
    return y_pred.masked_fill(~mask[..., None], 0), mask


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of values [b, n] over real positions, in double precision where they are not floats."""
    values = values if values.is_floating_point() else values.double()
    return (values * mask).sum() / mask.sum()
