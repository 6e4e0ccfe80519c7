"""Pairs of a source and its target as batches, for encoders that write (UniLM) and for encoder-decoders (T5).

Knows where pairs stand in files, a tokenizer and how a pair becomes a row. Knows no torch.

    UniLM    ids       [CLS] s s s [SEP] t t            as bert4keras's examples/task_seq2seq has it: segment 0 sees
             segments    0   0 0 0   0   1 1            itself whole, segment 1 what stands before
             targets     0   0 0 0   t   t [SEP]        0 is ignored in the loss
    T5       source     s  s  s </s>                    T5-PEGASUS: [CLS] s s s [SEP]
             ids        0  t  t                         0 begins the answer, or what config.json says, or [CLS]
             targets    t  t </s>

Marks (`hanmo.tokenizers.prompt.marks_of`) and special tokens written in a text are those of prompts.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanmo.config import ModelConfig
from hanmo.errors import DataError, TokenizerError
from hanmo.tokenizers.prompt import marks_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training.data.documents import JSON, TABLES, find_files, form, json_rows, opened, table_rows, text_in

__all__ = ["PairData", "read_pairs"]


def read_pairs(
    paths: Iterable[str | Path], *, source_key: str = "source", target_key: str = "target"
) -> Iterator[tuple[str, str]]:
    """Yield (source, target) of all files, in their order: fields of jsonl, columns of csv and tsv.

    A table whose first row holds not both keys has no header: its two columns are source and target.
    Raises MissingFile, and DataError naming file and line where a text is missing or empty, or a file is broken.
    """
    for path in find_files(paths):
        if form(path) not in JSON + TABLES:
            raise DataError(f"{path} ends in {form(path)!r}; pairs come as jsonl, csv or tsv")
        empty = True
        with opened(path) as (file, _):
            rows = _objects if form(path) in JSON else _cells
            for number, source, target in rows(file, path, source_key, target_key):
                for key, text in ((source_key, source), (target_key, target)):
                    if not text.strip():
                        raise DataError(f"{path} line {number} has an empty {key!r}; fill it, or remove the line")
                empty = False
                yield source, target
        if empty:
            raise DataError(f"{path} holds no pair; remove it or fill it")


class PairData:
    """Batches of pairs, fixed by (seed, epoch, step): training may go on from any step.

    pairs: (source, target), encoded here and held as ids.   rows: of a batch; the last of an epoch may have fewer.
    config: the model's, which tells an encoder-decoder from an encoder with a "prefix" mask, and the marks of both.
    limit: most ids of a row, or of an encoder-decoder's source.   target_limit: most ids of a target and its end mark.
    What is longer is cut at its end: first the target to its limit, then the source to what is left. `cut` counts
    the pairs that lost something.   shuffle: False keeps the order of the pairs.
    Raises DataError if there is no pair, a text of one has no ids, or a number is out of range; TokenizerError if the
    tokenizer has not the marks.
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
        self._marks, self._answers = marks_of(config, tokenizer), config.is_encoder_decoder
        around = len(self._marks.before) + len(self._marks.after)
        if target_limit < 2 or limit <= around + (0 if self._answers else target_limit):
            raise DataError(
                f"limit is {limit} and target_limit is {target_limit}, which leave no room for a source; "
                "raise limit, or lower target_limit (2 at least)"
            )
        self.rows, self.seed, self.cut = rows, seed, 0
        self._shuffle, self._limit, self._target_limit = shuffle, limit, target_limit
        if not self._marks.ends or (not self._marks.before and not self._answers):
            raise TokenizerError(
                "the tokenizer marks no start or no end of a text, which pairs need; load it with ends=True"
            )
        self._pairs = [self._encoded(number, pair, tokenizer) for number, pair in enumerate(pairs, 1)]
        if not self._pairs:
            raise DataError("there is no pair to train on; give files that hold some")

    def __len__(self) -> int:
        return len(self._pairs)

    def steps(self, epoch: int = 0) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self._pairs) // self.rows)

    def batch(self, epoch: int, step: int) -> dict[str, NDArray[Any]]:
        """Return a batch for `hanmo.training.loss.targets_loss`: arrays [rows, longest of the batch] by name.

        Raises DataError if the epoch has no such step.
        """
        if not 0 <= step < self.steps(epoch):
            raise DataError(f"epoch {epoch} has steps 0 to {self.steps(epoch) - 1}, asked for {step}")
        order = np.arange(len(self._pairs))
        if self._shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        chosen = [self._pairs[number] for number in order[step * self.rows : (step + 1) * self.rows]]
        return _answered(chosen, self._marks.start) if self._answers else _prefixed(chosen)

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
        """Yield (epoch, step, batch) from there on without end, epoch after epoch."""
        while True:
            for number in range(step, self.steps(epoch)):
                yield epoch, number, self.batch(epoch, number)
            epoch, step = epoch + 1, 0

    def _encoded(self, number: int, pair: tuple[str, str], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Return the ids of a pair with its marks: the source with those around it, the target with its end mark."""
        source, target = (tokenizer.encode(text, ends=False, special=True).ids for text in pair)
        if not source or not target:
            raise DataError(f"the {'target' if source else 'source'} of pair {number} has no tokens: {pair!r}; mend it")
        before, after = self._marks.before, self._marks.after
        kept_target = target[: self._target_limit - 1]
        room = self._limit - len(before) - len(after) - (0 if self._answers else len(kept_target) + 1)
        self.cut += len(kept_target) < len(target) or room < len(source)
        return [*before, *source[:room], *after], [*kept_target, self._marks.ends[0]]


def _objects(file: Any, path: Path, source_key: str, target_key: str) -> Iterator[tuple[int, str, str]]:
    for number, record in json_rows(file, path):
        where = f"{path} line {number}"
        source = text_in(record, source_key, where, option="source_key")
        yield number, source, text_in(record, target_key, where, option="target_key")


def _cells(file: Any, path: Path, source_key: str, target_key: str) -> Iterator[tuple[int, str, str]]:
    columns: tuple[int, int] | None = None
    for number, row in table_rows(file, path):
        if columns is None:
            headed = source_key in row and target_key in row
            columns = (row.index(source_key), row.index(target_key)) if headed else (0, 1)
            if headed:
                continue
            if len(row) != 2:
                raise DataError(
                    f"{path} line {number} has {len(row)} columns, {row[:5]}, and not {source_key!r} and "
                    f"{target_key!r} among them; name the two with source_key and target_key"
                )
        if len(row) <= max(columns):
            raise DataError(f"{path} line {number} has {len(row)} columns, expected {max(columns) + 1}; mend the row")
        yield number, row[columns[0]], row[columns[1]]


def _prefixed(pairs: list[tuple[list[int], list[int]]]) -> dict[str, NDArray[Any]]:
    size = max(len(source) + len(target) for source, target in pairs) - 1  # the last mark is predicted, not read
    ids, targets = np.zeros((2, len(pairs), size), np.int64)
    segments = np.ones((len(pairs), size), np.int64)  # of padding too, which nothing before it sees then
    for row, (source, target) in enumerate(pairs):
        whole = [*source, *target]
        ids[row, : len(whole) - 1] = whole[:-1]
        segments[row, : len(source)] = 0
        targets[row, len(source) - 1 : len(whole) - 1] = target
    return {"ids": ids, "segments": segments, "targets": targets}


def _answered(pairs: list[tuple[list[int], list[int]]], start: int) -> dict[str, NDArray[Any]]:
    source_ids = np.zeros((len(pairs), max(len(source) for source, _ in pairs)), np.int64)
    source_mask = np.zeros(source_ids.shape, bool)
    ids, targets = np.zeros((2, len(pairs), max(len(target) for _, target in pairs)), np.int64)
    for row, (source, target) in enumerate(pairs):
        source_ids[row, : len(source)] = source
        source_mask[row, : len(source)] = True
        ids[row, : len(target)] = [start, *target[:-1]]
        targets[row, : len(target)] = target
    return {"source": source_ids, "source_mask": source_mask, "ids": ids, "targets": targets}
