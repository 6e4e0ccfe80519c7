"""Packed windows with some of their tokens hidden, for models that fill masks (BERT, arXiv 1810.04805).

Knows ids and the rule: of all tokens a share is predicted; of these 80 % become [MASK], 10 % another token, 10 % stay.
Which they are is drawn anew in every epoch. Knows no files and no torch.

    window     天  地  玄  黄  宇
    ids      [CLS] 天 [MASK] 玄  黄  宇 [SEP]
    targets    0   0   地   0   0   0   0        0 is ignored in the loss
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import DataError, TokenizerError
from hanmo.tokenizers.protocol import Tokenizer

__all__ = ["MaskedData"]


class _Windows(Protocol):
    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, NDArray[Any]]]: ...


class MaskedData:
    """Batches of masked windows, fixed by (seed, epoch, step): training may go on from any step.

    data: windows of ids padded at their ends with 0, such as `PackedData`; rows get [CLS] and [SEP] around them where
        the tokenizer has these, so that they grow by up to two.
    share: of the tokens that are predicted; special ones ([UNK], [SEP] …) never are.
    Raises DataError if share is not in (0, 1), TokenizerError if the tokenizer has no mask.
    """

    def __init__(self, data: _Windows, tokenizer: Tokenizer, *, share: float = 0.15, seed: int = 0) -> None:
        if not 0 < share < 1:
            raise DataError(f"share is {share}, expected a number between 0 and 1")
        special = tokenizer.special
        if special.mask is None:
            raise TokenizerError("the tokenizer has no [MASK], which masked training needs; take a BERT vocabulary")
        self._data, self._share, self._seed = data, share, seed
        self._mask, self._start, self._end = special.mask, special.start, special.end
        never = special.known() | {0}
        self._plain = np.array([number for number in range(tokenizer.vocab_size) if number not in never])
        self._may = np.isin(np.arange(tokenizer.vocab_size), self._plain)

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
        """Yield (epoch, step, batch) from there on without end; see `hanmo.training.loss.targets_loss`.

        A batch holds "ids" and "targets", both [rows, n], and "mask" where there is padding.
        """
        for at_epoch, at_step, windows in self._data.batches(epoch, step):
            # The last number tells these draws from those of the data, which may have the same seed.
            random = np.random.default_rng([self._seed, at_epoch, at_step, 1])
            yield at_epoch, at_step, self._hidden(self._marked(windows[windows.any(1)]), random)

    def _marked(self, windows: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rows with a start mark before and an end mark behind their ids."""
        first = int(self._start is not None)
        rows = np.zeros((len(windows), windows.shape[1] + first + (self._end is not None)), np.int64)
        rows[:, first : first + windows.shape[1]] = windows
        if self._start is not None:
            rows[:, 0] = self._start
        if self._end is not None:
            rows[np.arange(len(rows)), first + (windows != 0).sum(1)] = self._end
        return rows

    def _hidden(self, rows: NDArray[np.int64], random: np.random.Generator) -> dict[str, NDArray[Any]]:
        chosen = (random.random(rows.shape) < self._share) & self._may[rows]
        how = random.random(rows.shape)
        others = random.choice(self._plain, rows.shape)
        ids = np.where(chosen & (how < 0.8), self._mask, np.where(chosen & (how >= 0.9), others, rows))
        batch = {"ids": ids, "targets": np.where(chosen, rows, 0)}
        real = rows != 0
        return batch if real.all() else {**batch, "mask": real}
