"""Measure what a model spends on packed documents, each read by itself, by the rule of hanmo/train/bits.py.

Knows models and packed files. Knows no optimizer and no step.

A document longer than the model sees is read in overlapping windows; every token is foretold once:

    tokens    0 ........................ n
    window 1  [foretold       ]
    window 2       (read)     [foretold]        `stride` new tokens a window

Before the first token stands the end mark. In files without one (GPT2_ML has none) nothing does: the first token is
given and not foretold, and counts as one character.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hanmo.model import Model
from hanmo.train.bits import Bits
from hanmo.train.packed import PackedFile

__all__ = ["spent_on"]

_SCORES = 1 << 24  # elements of [tokens, vocab] held at once


@torch.no_grad()
def spent_on(
    model: Model,
    file: PackedFile,
    *,
    window: int,
    stride: int | None = None,
    unknown: int = 1,
    documents: int | None = None,
    tokens: int = 1 << 15,
    dtype: torch.dtype | None = None,
) -> Bits:
    """Add up -log p of every token and end mark of the documents.

    window: ids that the model reads at once.   stride: new ids of each window after a document's first; None: window.
    unknown: id of [UNK].   documents: only the first so many.   tokens: of a batch, padding included.
    dtype: of autocast; None computes as the weights are.   The model is put into evaluation mode and back.
    Raises ValueError if stride is not in 1 … window.
    """
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}; expected 1 to the window, {window}")
    rows = file.documents[:documents]
    device = model.token.weight.device
    total = torch.zeros((), dtype=torch.float64)
    trained = model.training
    model.eval()
    for ids, first in _batches(file, rows, window, stride, tokens):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            total += _nats(model, torch.from_numpy(ids).to(device), torch.from_numpy(first).to(device)).cpu()
    model.train(trained)
    given = int(file.facts["end"] is None)  # ids of each document that are not foretold
    starts, lengths = rows["start"] + given, rows["tokens"] - given
    unknowns = sum(int((file.ids[a : a + n] == unknown).sum()) for a, n in zip(starts, lengths, strict=True))
    return Bits(float(total), int(lengths.sum()), int(rows["characters"].sum()) - given * len(rows), unknowns)


def _nats(model: Model, ids: Tensor, first: Tensor) -> Tensor:
    """Sum -log p of ids[:, 1:] from column `first` [rows] on, where they are not 0; float64."""
    targets = ids[:, 1:]
    counted = (targets != 0) & (torch.arange(targets.shape[1], device=ids.device) >= first[:, None])
    hidden, wanted = model(ids[:, :-1], logits="none").hidden[counted], targets[counted]
    size = max(1, _SCORES // model.config.vocab)
    total = torch.zeros((), dtype=torch.float64, device=ids.device)
    for some, right in zip(torch.split(hidden, size), torch.split(wanted, size), strict=True):
        total += F.cross_entropy(model.logits(some).float(), right, reduction="none").double().sum()
    return total


def _batches(
    file: PackedFile, rows: NDArray[np.void], window: int, stride: int, tokens: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (ids [b, n + 1] padded with 0, first column foretold [b]) of windows of like length."""
    end = [] if file.facts["end"] is None else [file.facts["end"]]
    windows: list[tuple[int, int, int, int]] = []  # ids, document, first id foretold, one past the last, marks counted
    for number, row in enumerate(rows):
        length, done = len(end) + int(row["tokens"]), 1
        while done < length:
            stop = min(length, done + (stride if done > 1 else window))
            windows.append((min(stop, window + 1), number, done, stop))
            done = stop
    windows.sort()
    at = 0
    while at < len(windows):
        count = 1
        while at + count < len(windows) and (windows[at + count][0] - 1) * (count + 1) <= tokens:
            count += 1
        some = windows[at : at + count]
        ids = np.zeros((count, some[-1][0]), np.int64)
        first = np.zeros(count, np.int64)
        for place, (size, number, done, stop) in enumerate(some):
            begin, start = stop - size, int(rows[number]["start"]) - len(end)
            text = file.ids[start + max(begin, len(end)) : start + stop]
            ids[place, :size] = text if begin or not end else np.concatenate([end, text])
            first[place] = done - begin - 1
        yield ids, first
        at += count
