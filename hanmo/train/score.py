"""Measure a model on packed documents by the rule of bits.py: each id once, as much before it as the window holds.

Knows packed files and windows. Knows no model: what it asks of one is log p of ids given those before them.

    document    E a b c d e f g h i E           E is the end mark
    window 1    E a b c d e f                   foretells a b c d e f
    window 2            c d e f g h i           foretells     g h i     (window 6, context 3: d e f are read again)
    window 3                  f g h i E         foretells           E
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import DataError
from hanmo.train.bits import Bits
from hanmo.train.packed import PackedFile

__all__ = ["measure", "scoring_windows"]

Ids = NDArray[np.int64]


def scoring_windows(
    file: PackedFile, *, window: int, context: int, rows: int
) -> Iterator[tuple[Ids, NDArray[np.bool_]]]:
    """Yield (ids [rows, window + 1], counted [rows, window]); counted marks the foretold ids that are to be added up.

    context: ids that a window but the first of a document reads again, 0 to window - 1; half the window serves well.
    The last batch is filled up with rows of 0 that count nothing.
    Raises DataError if context is out of range or the file has no end mark.
    """
    if not 0 <= context < window:
        raise DataError(f"context is {context}, expected 0 to {window - 1}, less than the window")
    if file.facts["end"] is None:
        raise DataError(f"{file.name} was packed without an end mark, which the rule needs; pack it with one")
    ids, counted = np.zeros((rows, window + 1), np.int64), np.zeros((rows, window), bool)
    filled = 0
    for row in file.documents:
        start, tokens = int(row["start"]), int(row["tokens"])
        document = np.concatenate([[file.facts["end"]], file.ids[start : start + tokens]])
        done = 0  # ids of the document that are foretold
        while done < tokens:
            first = max(done - context, 0)
            piece = document[first : first + window + 1]
            ids[filled, : len(piece)] = piece
            counted[filled, done - first : len(piece) - 1] = True
            done, filled = first + len(piece) - 1, filled + 1
            if filled == rows:
                yield ids, counted
                ids, counted, filled = np.zeros_like(ids), np.zeros_like(counted), 0
    if filled:
        yield ids, counted


def measure(
    log_probabilities: Callable[[Ids], NDArray[np.floating[Any]]],
    file: PackedFile,
    *,
    window: int,
    context: int,
    rows: int = 16,
) -> Bits:
    """Return what a model spends on the documents of a packed file.

    log_probabilities: [rows, window + 1] ids to natural log p of ids[:, 1:], [rows, window]; what it gives for rows and
        places of 0 is not looked at.   The rest: as in `scoring_windows`.
    """
    nats = 0.0
    for ids, counted in scoring_windows(file, window=window, context=context, rows=rows):
        nats -= float(np.where(counted, log_probabilities(ids), 0).sum(dtype=np.float64))
    facts = file.facts
    return Bits(nats=nats, tokens=facts["tokens"], characters=facts["characters"], unknown=facts["unknown"])
