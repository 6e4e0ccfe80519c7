"""Score a model on held-out data: bits per character of packed documents, mean loss of other batches.

A document longer than the window is read in overlapping windows; every token is predicted once:

    tokens    0 ........................ n
    window 1  [predicted       ]
    window 2       (read)     [predicted]        `stride` new tokens a window

The end mark precedes the first token. In files without one (GPT2_ML has none) the first token is given, not predicted,
and counts as one character.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.errors import ConfigError, CorruptFile, DataError
from hanmo.files import read_json
from hanmo.model import Model
from hanmo.training.data.packed import PackedFile
from hanmo.training.data.stream import count_predicted

_SCORES = 1 << 24  # elements of [tokens, vocab] held at once


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, without dropout, and back at the end."""
    trained = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(trained)


def score_of(record: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the name of an evaluation's score and whether higher is better.

    record: "score" names the score, by default "bits_per_character" if there is one, else "loss";
        "higher_is_better" is False by default.
    Raises ConfigError if the record has no such score.
    """
    name = record.get("score", "bits_per_character" if "bits_per_character" in record else "loss")
    if name not in record:
        raise ConfigError(f'evaluate returned {sorted(record)} without {name!r}; add it, or name the key in "score"')
    return name, bool(record.get("higher_is_better", False))


@dataclass(frozen=True)
class Bits:
    """The cost of some documents under a model; costs can be added.

    nats: -sum of log p over all tokens and end marks.   tokens: their number.
    characters: of the original text.   unknown: [UNK] among the tokens, each one character.
    """

    nats: float
    tokens: int
    characters: int
    unknown: int

    def __add__(self, other: "Bits") -> "Bits":
        return Bits(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


def bits_per_character(spent: Bits, *, distinct_unknown: int) -> float:
    """Return the bits per character of the original text; each [UNK] costs log2(distinct_unknown + 1) more.

    distinct_unknown: distinct unknown characters in training (`distinct_unknown` of the training data's NAME.json).
    Raises DataError if there are no characters.
    """
    if spent.characters < 1:
        raise DataError(f"{spent.characters} characters were measured, expected 1 or more; give files that hold text")
    return (spent.nats / math.log(2) + spent.unknown * math.log2(distinct_unknown + 1)) / spent.characters


def token_logprobs(
    log_probabilities: Callable[[Sequence[int]], Sequence[float]], ids: Sequence[int], *, window: int
) -> list[float]:
    """Return the natural log p of every id but the first, read in windows that overlap by half.

    log_probabilities: of a window's ids but the first.   window: ids read at once, 2 or more.
    """
    found: list[float] = []
    start = 0
    while len(found) < len(ids) - 1:
        found += log_probabilities(ids[start : start + window])[len(found) - start :]
        start += window // 2
    return found


def held_out(folder: Path, *, vocabulary_sha256: str) -> dict[str, PackedFile]:
    """Open every valid-NAME.bin of a folder: {NAME: file}. Raises DataError if there is none."""
    names = sorted(path.stem.removeprefix("valid-") for path in folder.glob("valid-*.json"))
    if not names:
        raise DataError(f"{folder} holds no valid-*.json; pack held-out documents there, or name another folder")
    return {name: PackedFile(folder / f"valid-{name}", vocabulary_sha256=vocabulary_sha256) for name in names}


def evaluation(
    files: Mapping[str, PackedFile], *, distinct_unknown: int, window: int, apart: Iterable[str] = (), **options: Any
) -> Callable[[Model], dict[str, Any]]:
    """Return the function that scores a model on every file, and on all but `apart` together.

    distinct_unknown: of the training data.   options: further arguments of `spent_on`.
    """
    left_out = set(apart)

    def record(spent: Bits) -> dict[str, float]:
        return {
            "bits_per_character": bits_per_character(spent, distinct_unknown=distinct_unknown),
            "nats": spent.nats, "tokens": spent.tokens, "characters": spent.characters, "unknown": spent.unknown,
        }  # fmt: skip

    def evaluate(model: Model) -> dict[str, Any]:
        found = {name: spent_on(model, file, window=window, **options) for name, file in files.items()}
        total = sum((bits for name, bits in found.items() if name not in left_out), Bits(0.0, 0, 0, 0))
        return {**record(total), "files": {name: record(bits) for name, bits in found.items()}}

    return evaluate


def mean_loss(
    loss: Callable[[Model, Any], Tensor], batches: Callable[[], Iterator[Any]], half: torch.dtype | None = None
) -> Callable[[Model], dict[str, Any]]:
    """Return the function that measures a model's mean loss over batches of NumPy arrays, the same ones every time."""

    @torch.no_grad()
    def evaluate(model: Model) -> dict[str, Any]:
        device, total, count = model.token.weight.device, 0.0, 0
        with evaluating(model):
            for arrays in batches():
                batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
                with torch.autocast(device.type, half, enabled=half is not None):
                    found = loss(model, batch)
                predicted = int(count_predicted(batch))
                total += float(found) * predicted
                count += predicted
        return {"loss": total / max(1, count), "tokens": count}

    return evaluate


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
    """Sum -log p of every token and end mark of the documents.

    window: ids that the model reads at once.   stride: new ids of each window after a document's first; None: window.
    unknown: id of [UNK].   documents: only the first so many.   tokens: of a batch, with padding.
    dtype: of autocast; None computes in the weights' dtype.   The model is put into evaluation mode and back.
    Raises ValueError if stride is not in 1 … window.
    """
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}; expected 1 to the window, {window}")
    rows, device = file.documents[:documents], model.token.weight.device
    size = max(1, _SCORES // model.config.vocab_size)  # predictions whose scores are held at once
    total = torch.zeros((), dtype=torch.float64)
    with evaluating(model):
        for arrays in _batches(file, rows, window, stride, tokens):
            ids, first = (torch.from_numpy(array).to(device) for array in arrays)
            targets = ids[:, 1:]
            counted = (targets != 0) & (torch.arange(targets.shape[1], device=device) >= first[:, None])
            nats = torch.zeros((), dtype=torch.float64, device=device)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                hidden = model(ids[:, :-1], logits="none").hidden[counted]
                for some, right in zip(torch.split(hidden, size), torch.split(targets[counted], size), strict=True):
                    nats += F.cross_entropy(model.logits(some).float(), right, reduction="none").double().sum()
            total += nats.cpu()
    given = int(file.facts["end"] is None)  # ids of each document that are not predicted
    starts, lengths = rows["start"] + given, rows["tokens"] - given
    unknowns = sum(int((file.ids[a : a + n] == unknown).sum()) for a, n in zip(starts, lengths, strict=True))
    return Bits(float(total), int(lengths.sum()), int(rows["characters"].sum()) - given * len(rows), unknowns)


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


def distinct_unknown_of(path: Path) -> int:
    """Return how many distinct unknown characters training saw, from training.json beside a checkpoint; or 0.

    Raises CorruptFile if that file does not say so.
    """
    told = (path if path.is_dir() else path.parent) / "training.json"
    if not told.is_file():
        return 0
    found = read_json(told, advice="; correct or remove it").get("distinct_unknown")
    if type(found) is not int or found < 0:
        raise CorruptFile(f"{told} says distinct_unknown is {found!r}; expected a whole number of 0 or more")
    return found
