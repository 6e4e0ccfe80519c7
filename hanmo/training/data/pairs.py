"""Pairs of a source and its target as batches, for encoders that write (UniLM) and for encoder-decoders (T5).

Knows the files of pairs, a tokenizer and how a pair becomes a row. Knows no torch.

    UniLM    ids       [CLS] s s s [SEP] t t            as in bert4keras's examples/task_seq2seq: segment 0 attends to
             segments    0   0 0 0   0   1 1            all of itself, segment 1 to what precedes
             targets     0   0 0 0   t   t [SEP]        0 is ignored in the loss
    T5       source     s  s  s </s>                    T5-PEGASUS: [CLS] s s s [SEP]
             ids        0  t  t                         begins with 0, or what config.json says, or [CLS]
             targets    t  t </s>

Marks (`hanmo.tokenizers.prompt.marks_of`) and special tokens written in a text are those of prompts.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanmo.config import ModelConfig
from hanmo.errors import DataError, TokenizerError
from hanmo.tokenizers.prompt import marks_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training.data.documents import JSON, TABLES, find_files, form, opened, read_fields
from hanmo.training.data.epochs import Epochs


def read_pairs(
    paths: Iterable[str | Path], *, source_key: str = "source", target_key: str = "target"
) -> Iterator[tuple[str, str]]:
    """Yield (source, target) of all files, in their order: fields of jsonl, columns of csv and tsv.

    A table of two columns whose first row lacks the keys has no header: the columns are source and target.
    Raises MissingFile, and DataError naming file and line where a text is missing or empty, or a file is broken.
    """
    keys = {"source_key": source_key, "target_key": target_key}
    for path in find_files(paths):
        if form(path) not in JSON + TABLES:
            raise DataError(f"{path} ends in {form(path)!r}; pairs come as jsonl, csv or tsv")
        empty = True
        with opened(path) as (file, _):
            for where, (source, target, _) in read_fields(file, path, keys, headless=True):
                for key, text in ((source_key, source), (target_key, target)):
                    if not text.strip():
                        raise DataError(f"{where} has an empty {key!r}; fill it, or remove the line")
                empty = False
                yield source, target
        if empty:
            raise DataError(f"{path} holds no pair; remove it or fill it")


class PairData(Epochs):
    """Batches of pairs, fixed by (seed, epoch, step); arrays [rows, longest of the batch] by name, for `targets_loss`.

    pairs: (source, target), encoded here and held as ids.   rows: of a batch; the last of an epoch may have fewer.
    config: the model's: an encoder-decoder, or an encoder with a "prefix" mask.
    limit: most ids of a row, or of an encoder-decoder's source.   target_limit: most ids of a target and its end mark.
    A longer pair is cut at the ends: the target to its limit, then the source to what is left. `cut` counts these
    pairs.   shuffle: False keeps the order of the pairs.
    Raises DataError if there is no pair, a text has no ids, or a number is out of range; TokenizerError if the
    tokenizer lacks the marks.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str]],
        tokenizer: Tokenizer,
        config: ModelConfig,
        *,
        rows: int,
        limit: int = 512,
        target_limit: int = 128,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if rows < 1:
            raise DataError(f"rows is {rows}, expected 1 or more")
        self._marks, self._two_stacks = marks_of(config, tokenizer), config.is_encoder_decoder
        before, after = self._marks.before, self._marks.after
        room = limit - len(before) - len(after)
        if target_limit < 2 or room <= (0 if self._two_stacks else target_limit):
            raise DataError(
                f"limit is {limit} and target_limit is {target_limit}, which leave no room for a source; "
                "raise limit, or lower target_limit (2 at least)"
            )
        if not self._marks.ends or (not before and not self._two_stacks):
            raise TokenizerError(
                "the tokenizer marks no start or no end of a text, which pairs need; load it with ends=True"
            )
        self.rows, self.seed, self.cut, self._shuffle = rows, seed, 0, shuffle
        self._pairs: list[tuple[list[int], list[int]]] = []
        for number, pair in enumerate(pairs, 1):
            source, target = (tokenizer.encode(text, ends=False, special=True).ids for text in pair)
            if not source or not target:
                empty = "target" if source else "source"
                raise DataError(f"the {empty} of pair {number} has no tokens: {pair!r}; mend it")
            kept = target[: target_limit - 1]
            left = room - (0 if self._two_stacks else len(kept) + 1)
            self.cut += len(kept) < len(target) or left < len(source)
            self._pairs.append(([*before, *source[:left], *after], [*kept, self._marks.ends[0]]))
        if not self._pairs:
            raise DataError("there is no pair to train on; give files that hold some")

    def __len__(self) -> int:
        return len(self._pairs)

    def steps(self, epoch: int = 0) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self._pairs) // self.rows)

    def _batch(self, epoch: int, step: int) -> dict[str, NDArray[Any]]:
        order = np.arange(len(self._pairs))
        if self._shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        chosen = order[step * self.rows : (step + 1) * self.rows]
        sources, targets = zip(*(self._pairs[number] for number in chosen), strict=True)
        if self._two_stacks:
            starts = [[self._marks.start, *target[:-1]] for target in targets]
            masks = _padded([[1] * len(source) for source in sources]).astype(bool)
            batch = {"source": _padded(sources), "source_mask": masks, "ids": _padded(starts)}
            return {**batch, "targets": _padded(targets)}
        # The last mark is predicted, not read. Padding has segment 1, as what precedes it does not attend to it.
        ids = _padded([[*source, *target[:-1]] for source, target in zip(sources, targets, strict=True)])
        segments = _padded([[0] * len(source) for source in sources], width=ids.shape[1], fill=1)
        wanted = [[0] * (len(source) - 1) + target for source, target in zip(sources, targets, strict=True)]
        return {"ids": ids, "segments": segments, "targets": _padded(wanted)}


def _padded(rows: Sequence[list[int]], *, width: int = 0, fill: int = 0) -> NDArray[np.int64]:
    width = max(width, max(map(len, rows)))
    return np.array([row + [fill] * (width - len(row)) for row in rows], np.int64)
