"""Measure what a model spends on packed documents, each read by itself, and what bits per character means.

Knows models and packed files. Knows no optimizer and no step.

A document longer than the model sees is read in overlapping windows; every token is predicted once:

    tokens    0 ........................ n
    window 1  [predicted       ]
    window 2       (read)     [predicted]        `stride` new tokens a window

Before the first token stands the end mark. In files without one (GPT2_ML has none) nothing does: the first token is
given and not predicted, and counts as one character.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hanmo.errors import CorruptFile, DataError
from hanmo.files import read_json
from hanmo.model import Model
from hanmo.training.data.packed import PackedFile

__all__ = [
    "Bits",
    "bits_per_character",
    "distinct_unknown_of",
    "measure",
    "scoring_windows",
    "spent_on",
    "token_logprobs",
]

_SCORES = 1 << 24  # elements of [tokens, vocab] held at once


@dataclass(frozen=True)
class Bits:
    """What a model spends on some documents; adding two gives both together.

    nats: -sum of log p over all tokens and end marks.   tokens: their number.
    characters: of the original text.   unknown: [UNK] among the tokens, each one character.
    """

    nats: float
    tokens: int
    characters: int
    unknown: int

    def __add__(self, other: "Bits") -> "Bits":
        return Bits(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.characters + other.characters,
            self.unknown + other.unknown,
        )


def bits_per_character(spent: Bits, *, distinct_unknown: int) -> float:
    """Return the bits per character of the original text, by the rule above.

    distinct_unknown: distinct unknown characters in training (`distinct_unknown` of the training data's NAME.json).
    Raises DataError if there are no characters.
    """
    if spent.characters < 1:
        raise DataError(f"{spent.characters} characters were measured, expected 1 or more; give files that hold text")
    return (spent.nats / math.log(2) + spent.unknown * math.log2(distinct_unknown + 1)) / spent.characters


def token_logprobs(
    log_probabilities: Callable[[Sequence[int]], Sequence[float]], ids: Sequence[int], *, window: int
) -> list[float]:
    """Give natural log p of every id but the first, each once, read in windows that overlap by half.

    log_probabilities: of a window's ids but the first.   window: the most ids that are read at once, 2 or more.
    """
    found: list[float] = []
    start = 0
    while len(found) < len(ids) - 1:
        found += log_probabilities(ids[start : start + window])[len(found) - start :]
        start += window // 2
    return found


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
    given = int(file.facts["end"] is None)  # ids of each document that are not predicted
    starts, lengths = rows["start"] + given, rows["tokens"] - given
    unknowns = sum(int((file.ids[a : a + n] == unknown).sum()) for a, n in zip(starts, lengths, strict=True))
    return Bits(float(total), int(lengths.sum()), int(rows["characters"].sum()) - given * len(rows), unknowns)


def _nats(model: Model, ids: Tensor, first: Tensor) -> Tensor:
    """Sum -log p of ids[:, 1:] from column `first` [rows] on, where they are not 0; float64."""
    targets = ids[:, 1:]
    counted = (targets != 0) & (torch.arange(targets.shape[1], device=ids.device) >= first[:, None])
    hidden, wanted = model(ids[:, :-1], logits="none").hidden[counted], targets[counted]
    size = max(1, _SCORES // model.config.vocab_size)
    total = torch.zeros((), dtype=torch.float64, device=ids.device)
    for some, right in zip(torch.split(hidden, size), torch.split(wanted, size), strict=True):
        total += F.cross_entropy(model.logits(some).float(), right, reduction="none").double().sum()
    return total


def _batches(
    file: PackedFile, rows: NDArray[np.void], window: int, stride: int, tokens: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (ids [b, n + 1] padded with 0, first column predicted [b]) of windows of like length."""
    end = [] if file.facts["end"] is None else [file.facts["end"]]
    windows: list[tuple[int, int, int, int]] = []  # ids, document, first id predicted, one past the last, marks counted
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


Ids = NDArray[np.int64]


def scoring_windows(
    file: PackedFile, *, window: int, context: int, rows: int
) -> Iterator[tuple[Ids, NDArray[np.bool_]]]:
    """Yield (ids [rows, window + 1], counted [rows, window]); counted marks the predicted ids that are to be added up.

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
        done = 0  # ids of the document that are predicted
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


def distinct_unknown_of(path: Path) -> int:
    """Tell how many distinct unknown characters training saw, by training.json beside a checkpoint; or 0.

    Raises CorruptFile if that file does not say so.
    """
    told = (path if path.is_dir() else path.parent) / "training.json"
    if not told.is_file():
        return 0
    found = read_json(told, advice="; mend it or take it away").get("distinct_unknown")
    if type(found) is not int or found < 0:
        raise CorruptFile(f"{told} says distinct_unknown is {found!r}; expected a whole number of 0 or more")
    return found
