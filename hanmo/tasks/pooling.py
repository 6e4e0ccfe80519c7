"""One vector of a text from its token vectors."""

from torch import Tensor

from hanmo.errors import ConfigError
from hanmo.model import Output


def pool(output: Output, mask: Tensor, how: str) -> Tensor:
    """Return [b, hidden_size]: what the pooler made, the mean of the real tokens, or the first token.

    mask: [b, n], True where a token is real.
    """
    if how == "mean":
        weight = mask[..., None].to(output.hidden.dtype)
        return (output.hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
    if how == "first":
        return output.hidden[:, 0]
    if output.pooled is None:
        raise ConfigError("pooling is 'pooler', and the network has none; use 'mean' or 'first'")
    return output.pooled
