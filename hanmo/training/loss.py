"""The loss of predicting tokens, the next or others, without holding scores of all tokens [tokens, vocab] at once.

hidden [tokens, hidden_size] ─ cut into chunks ─► scores [chunk, vocab] ─► sum of -log p    (made again in backward)
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hanmo.errors import ConfigError
from hanmo.model import Model
from hanmo.training.activations import CHUNK_BYTES

IGNORED = 0  # the id that pads; it is read but never predicted


def next_token_loss(model: Model, ids: Tensor, *, chunk_bytes: int | None = None) -> Tensor:
    """Return the mean -log p of ids[:, 1:] from ids[:, :-1]: a float32 scalar.

    ids: [rows, window + 1]; an id 0 is read but not predicted.   chunk_bytes: see `cross_entropy`.
    """
    hidden = model(ids[:, :-1], logits="none").hidden
    return cross_entropy(model.logits, hidden, ids[:, 1:], vocab_size=model.config.vocab_size, chunk_bytes=chunk_bytes)


def targets_loss(model: Model, batch: Mapping[str, Tensor], *, chunk_bytes: int | None = None) -> Tensor:
    """Return the mean -log p of batch["targets"], each at its position: a float32 scalar.

    batch: "targets" [rows, n], 0 where nothing is predicted, and arguments of the model by name: "ids" [rows, n],
    "segments", "mask", "source", "source_mask", as pairs.py and masked.py make them.   chunk_bytes: as above.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
    hidden, targets = model(**inputs, logits="none").hidden, batch["targets"]
    asked = targets != IGNORED  # the scores of the others are not computed
    return cross_entropy(
        model.logits, hidden[asked], targets[asked], vocab_size=model.config.vocab_size, chunk_bytes=chunk_bytes
    )


def cross_entropy(
    scores: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return the mean cross entropy over the targets that are not 0, chunk by chunk.

    scores: [tokens, hidden_size] → [tokens, vocab].   hidden: [..., hidden_size].   targets: [...], integers.
    chunk_bytes: most bytes of float32 scores at once; None takes CHUNK_BYTES of the device. What fits one chunk is not
    recomputed.   The sum is divided by the count + 1e-5, as in gpt2-ml (`train/modeling.py`, lm_loss).
    Raises ConfigError if chunk_bytes holds no token.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cpu"])
    rows = chunk_bytes // (4 * vocab_size)
    if rows < 1:
        raise ConfigError(
            f"chunk_bytes is {chunk_bytes}; scores of one token over {vocab_size} words need {4 * vocab_size}"
        )

    def chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(scores(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")

    if len(targets) <= rows:
        total = chunk(hidden, targets)
    else:
        total = hidden.new_zeros((), dtype=torch.float32)
        for some, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            total = total + checkpoint(chunk, some, wanted, use_reentrant=False, preserve_rng_state=False)
    return total / ((targets != IGNORED).sum() + 1e-5)
