"""Changes of the vocabulary on the way in: keep some rows of the embedding, add rows averaged from others."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hanmo.errors import ConfigError

# Our parameters that have one row (or entry) for every word.
VOCABULARY = ("token.weight", "output.weight", "output.bias")


@dataclass(frozen=True)
class Average:
    """A new row: the weighted mean of existing rows; weights None means equal ones."""

    ids: Sequence[int]
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class VocabularyEdit:
    """First keep the rows `keep` in that order (None: all), then add one row for each of `add`.

    The ids in `add` count rows after `keep`.
    """

    keep: Sequence[int] | None = None
    add: Sequence[Average] = field(default_factory=tuple)

    def size(self, rows: int) -> int:
        """Tell how many rows there will be of `rows`."""
        return (rows if self.keep is None else len(self.keep)) + len(self.add)

    def apply(self, tensor: Tensor) -> Tensor:
        """Edit a tensor whose first axis is the vocabulary.

        Raises ConfigError naming an id outside the vocabulary, or weights that do not fit their ids.
        """
        if self.keep is not None:
            _check(self.keep, len(tensor), "keep")
            tensor = tensor[torch.as_tensor(self.keep, dtype=torch.long)]
        added = []
        for average in self.add:
            _check(average.ids, len(tensor), "add")
            weights = average.weights if average.weights is not None else [1.0] * len(average.ids)
            if len(weights) != len(average.ids) or not average.ids or sum(weights) == 0:
                raise ConfigError(
                    f"add has {len(average.ids)} ids and {len(weights)} weights; expected as many of both, "
                    f"at least one, and weights that do not sum to 0"
                )
            w = torch.tensor(weights, dtype=torch.float64)
            rows = tensor[torch.as_tensor(average.ids, dtype=torch.long)].to(torch.float64)
            added.append(torch.tensordot(w / w.sum(), rows, 1).to(tensor.dtype))
        return torch.cat((tensor, torch.stack(added))) if added else tensor


def _check(ids: Sequence[int], rows: int, where: str) -> None:
    for i in ids:
        if not 0 <= i < rows:
            raise ConfigError(f"{where} names row {i}; the vocabulary has rows 0 to {rows - 1}")
