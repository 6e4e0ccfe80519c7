"""Packed windows with a share of their tokens masked, for models that fill masks (BERT, arXiv 1810.04805).

Of all tokens a share is predicted; of these 80 % become [MASK], 10 % another token, 10 % stay; drawn anew every epoch.
Knows no files and no torch.

    window     天  地  玄  黄  宇
    ids      [CLS] 天 [MASK] 玄  黄  宇 [SEP]
    targets    0   0   地   0   0   0   0        0 is ignored in the loss
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import DataError, TokenizerError
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training.data.epochs import Batches


class MaskedData:
    """Batches of masked windows, fixed by (seed, epoch, step).

    data: windows of ids padded at their ends with 0, such as `PackedData`; rows get [CLS] and [SEP] around them where
        the tokenizer has these.
    share: of the tokens that are predicted; special ones ([UNK], [SEP] …) never are.
    Raises DataError if share is not in (0, 1), TokenizerError if the tokenizer has no mask.
    """

    def __init__(self, data: Batches, tokenizer: Tokenizer, *, share: float = 0.15, seed: int = 0) -> None:
        if not 0 < share < 1:
            raise DataError(f"share is {share}, expected a number between 0 and 1")
        self._special = tokenizer.special
        if tokenizer.special.mask is None:
            raise TokenizerError("the tokenizer has no [MASK], which masked training needs; take a BERT vocabulary")
        self._data, self._share, self._seed = data, share, seed
        self._eligible = np.ones(tokenizer.vocab_size, bool)
        self._eligible[[number for number in self._special.known() | {0} if number < tokenizer.vocab_size]] = False

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
        """Yield (epoch, step, batch) from there on without end; see `hanmo.training.loss.targets_loss`.

        A batch holds "ids" and "targets", both [rows, n], and "mask" where there is padding.
        """
        start, end, mask = self._special.start, self._special.end, self._special.mask or 0
        for at_epoch, at_step, windows in self._data.batches(epoch, step):
            windows = windows[windows.any(1)]
            rows = np.pad(windows.astype(np.int64), ((0, 0), (int(start is not None), int(end is not None))))
            if start is not None:
                rows[:, 0] = start
            if end is not None:
                rows[np.arange(len(rows)), int(start is not None) + (windows != 0).sum(1)] = end
            # The last number distinguishes these draws from those of the data, which may have the same seed.
            random = np.random.default_rng([self._seed, at_epoch, at_step, 1])
            chosen = (random.random(rows.shape) < self._share) & self._eligible[rows]
            how = random.random(rows.shape)
            others = random.choice(np.flatnonzero(self._eligible), rows.shape)
            ids = np.where(chosen & (how < 0.8), mask, np.where(chosen & (how >= 0.9), others, rows))
            batch = {"ids": ids, "targets": np.where(chosen, rows, 0)}
            real = rows != 0
            yield at_epoch, at_step, batch if real.all() else {**batch, "mask": real}
