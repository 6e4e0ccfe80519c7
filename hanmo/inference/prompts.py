"""What every engine does before it reads prompts: check the model, and make one array of them."""

from collections.abc import Sequence

import numpy as np

from hanmo.checkpoint.source import Array
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError

__all__ = ["check_can_generate", "padded"]


def check_can_generate(config: ModelConfig) -> None:
    """Raise CheckpointError for a model that cannot generate."""
    if not config.can_generate:
        raise CheckpointError(
            "this model does not write: it has no output onto its vocabulary, or sees both ways; "
            "a BERT writes when it is loaded with mask='prefix' or 'causal'"
        )


def padded(texts: Sequence[Sequence[int]], *, left: bool) -> tuple[Array, Array | None]:
    """Pad texts with 0 to the longest: ids [b, n], and a mask [b, n] that is False for padding, None without any."""
    lengths = np.array([len(text) for text in texts])
    longest = int(lengths.max())
    indices = np.arange(longest)
    mask = indices >= longest - lengths[:, None] if left else indices < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(texts)
    return ids, None if mask.all() else mask
