"""What a run learns from: its kind by the model's configuration, its data by what lies at a path, what is held out.

    a decoder, or an encoder with mask="causal"    next token       text, or files of `hanmo pack`
    an encoder with its MLM head                   hidden tokens    text, or files of `hanmo pack`
    an encoder-decoder, or mask="prefix"           target by source jsonl with "source" and "target"

Knows files, tokenizers and losses. Knows no optimizer, no step and no command line.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, DataError
from hanmo.model import Model
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training import distributed
from hanmo.training.data.encoding import TokenEncoder
from hanmo.training.data.masked import MaskedData
from hanmo.training.data.pack import pack
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.data.pairs import PairData, read_pairs
from hanmo.training.data.stream import Batches, count_predicted
from hanmo.training.loss import next_token_loss, targets_loss
from hanmo.training.run import evaluation
from hanmo.training.step import Loss

__all__ = ["Reading", "Task", "kind_of", "make_task", "mean_loss", "split"]

_HELD_OUT = 1 << 16  # most ids that are split off: an evaluation is to cost little beside the training
_FEW = 20  # documents; of fewer, the end of each is held out instead of whole ones
_ENDS = "。！？…!?\n"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read.

    sequence: most ids of a row.   rows: of a batch.   held_out: share split off where no other data is for evaluation.
    separator: token after every document; None takes the vocabulary's end mark if it has one (not [SEP]).
    document: what one document of a text file is: "file", "line" or "paragraph".
    """

    sequence: int
    rows: int
    seed: int = 0
    held_out: float = 0.05
    separator: str | None = None
    document: str = "file"


@dataclass
class Task:
    """Data, loss and evaluation of a run.

    steps: epoch → batches in it.   notes: what was done with the data, for people.
    """

    data: Batches
    loss: Loss
    evaluate: Callable[[Model], dict[str, Any]]
    steps: Callable[[int], int]
    notes: list[str] = field(default_factory=list)


def kind_of(config: ModelConfig) -> str:
    """Name what a model learns: "next", "masked" or "pairs". Raises ConfigError for one that predicts nothing."""
    if config.output == "none":
        raise ConfigError(
            f"this {config.family} has no output onto its vocabulary, so there is nothing to learn from text; "
            "take a checkpoint with its language-model head"
        )
    if config.is_encoder_decoder or config.main.mask == "prefix":
        return "pairs"
    return "next" if config.main.mask == "causal" else "masked"


def make_task(
    config: ModelConfig,
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    *,
    out: Path,
    reading: Reading,
    valid: Sequence[Path] = (),
    half: torch.dtype | None = None,
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Task:
    """Open or pack the data of a run.

    out: folder where text is packed; again: what lies there from before is read again.   valid: data to evaluate on,
    instead of the share that is held out.   half: of autocast in evaluation.
    Raises DataError for data that is not of the kind that the model learns from, or cannot be read.
    """
    limit = config.main.context
    if limit is not None and reading.sequence > limit:
        raise ConfigError(f"sequence is {reading.sequence}; the model knows {limit} positions")
    if kind_of(config) == "pairs":
        return _pairs_task(config, tokenizer, paths, reading, valid, half)
    encoder = TokenEncoder(tokenizer, separator=reading.separator)
    packed = partial(_packed, out, encoder, reading, again, progress)
    train = packed("train", paths)
    if valid:
        held, note = packed("valid", valid), ""
    else:
        train, held, note = split(train, reading.held_out, seed=reading.seed)
    unknown = train.facts["distinct_unknown"]
    total, characters = int(train.documents["tokens"].sum()), int(train.documents["characters"].sum())
    notes = [f"training data: {len(train.documents):,} documents, {characters:,} characters, {total:,} tokens"]
    notes += [note] if note else []
    masked = kind_of(config) == "masked"
    window = reading.sequence - (3 if masked else 0)  # what [CLS], [SEP] and the id that only predicts take
    ends = tuple(number for mark in _ENDS if (number := tokenizer.token_to_id(mark)) is not None)
    layout: dict[str, Any] = {"layout": "document", "sentence_ends": ends}
    if train.facts["end"] is not None:
        layout = {"layout": "stream"}
    longest = int(train.documents["tokens"].max(initial=2))
    data = PackedData(train, window=min(window, longest), rows=reading.rows, seed=reading.seed, **layout)
    if not masked:
        tokens = reading.rows * reading.sequence
        options: dict[str, Any] = {
            "unknown": -1 if encoder.unknown is None else encoder.unknown,
            "tokens": tokens,
            "dtype": half,
        }
        evaluate = evaluation({"held-out": held}, distinct_unknown=unknown, window=window, **options)
        return Task(data, next_token_loss, evaluate, data.steps, notes)
    asked = PackedData(held, window=min(window, longest), rows=reading.rows, shuffle=False, **layout)
    hidden = MaskedData(asked, tokenizer)
    evaluate = mean_loss(targets_loss, lambda: _first_epoch(hidden, asked.steps(0)), half)
    return Task(MaskedData(data, tokenizer, seed=reading.seed), targets_loss, evaluate, data.steps, notes)


def split(file: PackedFile, share: float, *, seed: int = 0) -> tuple[PackedFile, PackedFile, str]:
    """Split packed documents into those to learn from and those held out, the same every time; say how.

    Of few documents the end of each is held out; at most 65,536 ids in all.
    Raises DataError for a share outside (0, 1), or where nothing is left on one side.
    """
    if not 0 < share < 1:
        raise DataError(f"the share held out is {share}; expected a number between 0 and 1")
    rows = np.array(file.documents)
    share = min(share, _HELD_OUT / max(1, int(rows["tokens"].sum())))
    if len(rows) >= _FEW:
        order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
        chosen = np.zeros(len(rows), bool)
        chosen[order[: max(1, round(share * len(rows)))]] = True
        left, held = rows[~chosen], rows[chosen]
        note = f"held out: {len(held):,} of {len(rows):,} documents, drawn with seed {seed}"
    else:
        left, held = rows.copy(), rows.copy()
        held["tokens"] = np.maximum(1, np.round(rows["tokens"] * share))
        left["tokens"] -= held["tokens"]
        held["start"] += left["tokens"]
        held["characters"] = np.round(rows["characters"] * held["tokens"] / np.maximum(1, rows["tokens"]))
        left["characters"] -= held["characters"]
        held["title"] = 0
        note = f"held out: the last {share:.1%} of each document"
    left, held = left[left["tokens"] > 1], held[held["tokens"] > 1]
    if not len(left) or not len(held):
        raise DataError(f"{file.name} is too short to hold {share:.1%} out of it; give more text, or valid=FILES")
    return _with(file, left), _with(file, held), f"{note}: {int(held['tokens'].sum()):,} tokens"


def mean_loss(
    loss: Loss, batches: Callable[[], Iterator[Any]], half: torch.dtype | None = None
) -> Callable[[Model], dict[str, Any]]:
    """Make the function that measures a model's mean loss over batches of NumPy arrays, the same ones every time."""

    @torch.no_grad()
    def evaluate(model: Model) -> dict[str, Any]:
        device, trained = model.token.weight.device, model.training
        model.eval()
        total, count = 0.0, 0
        for arrays in batches():
            batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            with torch.autocast(device.type, half, enabled=half is not None):
                found = loss(model, batch)
            total += float(found) * int(count_predicted(batch))
            count += int(count_predicted(batch))
        model.train(trained)
        return {"loss": total / max(1, count), "tokens": count}

    return evaluate


def _packed(
    folder: Path,
    encoder: TokenEncoder,
    reading: Reading,
    again: bool,
    progress: Callable[[int, int], None] | None,
    name: str,
    paths: Sequence[Path],
) -> PackedFile:
    """Open packed files, or pack text as FOLDER/NAME and open that."""
    found = _packed_name(paths)
    if found is None:
        found = folder / name
        if distributed.is_main() and not (again and found.with_name(f"{name}.json").is_file()):
            pack(paths, found, encoder=encoder, document=reading.document, progress=progress)
        distributed.agree(None)  # the others wait
    return PackedFile(found, vocabulary_sha256=encoder.sha256)


def _packed_name(paths: Sequence[Path]) -> Path | None:
    """Give the name without ending of packed files, by any of the three or by the name itself; None for text."""
    for path in paths:
        name = path.with_suffix("") if path.suffix in (".bin", ".documents", ".json") else path
        if all(name.with_name(name.name + ending).is_file() for ending in (".bin", ".documents", ".json")):
            if len(paths) > 1:
                raise DataError(f"{path} is packed and other data stands beside it; pack the texts of all together")
            return name
    return None


def _with(file: PackedFile, rows: Any) -> PackedFile:
    part = copy.copy(file)
    part.documents = rows
    return part


def _first_epoch(data: Batches, steps: int) -> Iterator[Any]:
    for (_, _, arrays), _ in zip(data.batches(0, 0), range(steps), strict=False):
        yield arrays


def _pairs_task(
    config: ModelConfig,
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    reading: Reading,
    valid: Sequence[Path],
    half: torch.dtype | None,
) -> Task:
    pairs, held = list(read_pairs(paths)), list(read_pairs(valid))
    notes = []
    if not valid:
        count = max(1, round(reading.held_out * len(pairs)))
        if count >= len(pairs):
            raise DataError(f"{len(pairs)} pairs are too few to hold some out; give more, or valid=FILES")
        chosen = set(np.random.default_rng([reading.seed, len(pairs)]).permutation(len(pairs))[:count].tolist())
        held = [pair for number, pair in enumerate(pairs) if number in chosen]
        pairs = [pair for number, pair in enumerate(pairs) if number not in chosen]
        notes = [f"held out: {count:,} of {count + len(pairs):,} pairs, drawn with seed {reading.seed}"]
    options: dict[str, Any] = {
        "rows": reading.rows, "limit": reading.sequence,
        "target_limit": min(128, reading.sequence // 2),
    }  # fmt: skip
    data = PairData(pairs, tokenizer, config, seed=reading.seed, **options)
    asked = PairData(held, tokenizer, config, shuffle=False, **options)
    notes.insert(0, f"training data: {len(data):,} pairs, of which {data.cut:,} were cut to {reading.sequence} tokens")
    evaluate = mean_loss(targets_loss, lambda: _first_epoch(asked, asked.steps(0)), half)
    return Task(data, targets_loss, evaluate, data.steps, notes)
