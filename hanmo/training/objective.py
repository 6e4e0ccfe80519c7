"""What a run learns from: its objective by the model's configuration, its data by what is at a path, the held-out data.

    a decoder, or an encoder with mask="causal"    next token       text, or files of `hanmo pack`
    an encoder with its MLM head                   masked tokens    text, or files of `hanmo pack`
    an encoder-decoder, or mask="prefix"           target by source jsonl with "source" and "target"

Knows files, tokenizers and losses. Knows no optimizer, no step and no command line.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, DataError
from hanmo.model import Model
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training import distributed
from hanmo.training.args import TrainArgs
from hanmo.training.data.epochs import Batches, digest
from hanmo.training.data.masked import MaskedData
from hanmo.training.data.pack import TokenEncoder, pack
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.data.pairs import PairData, read_pairs
from hanmo.training.loss import next_token_loss, targets_loss
from hanmo.training.score import evaluation, mean_loss
from hanmo.training.step import Loss

_HELD_OUT = 1 << 16  # maximum of ids held out by default, so that an evaluation costs little
_FEW = 20  # documents; of fewer, the end of each is held out instead of some documents
_ENDS = "。！？…!?\n"
_PACKED = (".bin", ".documents", ".json")


@dataclass
class Task:
    """Data, loss and evaluation of a run.

    steps: epoch → number of its batches.   notes: what was done with the data, for people.
    same: what a resumed run has to have again, by its name; packed data stays in the run's folder.
    """

    data: Batches
    loss: Loss
    evaluate: Callable[[Model], dict[str, Any]]
    steps: Callable[[int], int]
    notes: list[str]
    same: dict[str, str] = field(default_factory=dict)


def kind_of(config: ModelConfig) -> str:
    """Return what a model learns: "next", "masked" or "pairs". Raises ConfigError for one without an output."""
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
    args: TrainArgs,
    valid: Sequence[Path] = (),
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Task:
    """Open or pack the data of a run; `args` must give `sequence`.

    out: folder for packed text; again: use what is packed there.   valid: data to evaluate on, in place of a share.
    Raises DataError for data that does not fit the model's objective, or cannot be read.
    """
    limit, kind = config.main.context, kind_of(config)
    if limit is not None and args.sequence > limit:
        raise ConfigError(f"sequence is {args.sequence}; the model knows {limit} positions")
    half = torch.bfloat16 if args.precision == "mixed" else None
    if kind == "pairs":
        return _pairs_task(config, tokenizer, paths, args, valid, half)
    encoder = TokenEncoder(tokenizer, separator=args.separator)

    def packed(name: str, paths: Sequence[Path]) -> PackedFile:
        found = _packed_name(paths)
        if found is None:
            found = out / name
            if distributed.is_main() and not (again and found.with_name(f"{name}.json").is_file()):
                pack(paths, found, encoder=encoder, document=args.document, progress=progress)
            distributed.agree(None)  # the other processes wait
        return PackedFile(found, vocabulary_sha256=encoder.sha256)

    train, notes = packed("train", paths), []
    if valid:
        held = packed("valid", valid)
    else:
        train, held, note = split(train, args.held_out, seed=args.seed)
        notes = [note]
    total, characters = int(train.documents["tokens"].sum()), int(train.documents["characters"].sum())
    notes.insert(0, f"training data: {len(train.documents):,} documents, {characters:,} characters, {total:,} tokens")
    window = args.sequence - (3 if kind == "masked" else 0)  # [CLS], [SEP] and the id that is only predicted
    layout: dict[str, Any] = {"rows": args.batch, "window": min(window, int(train.documents["tokens"].max(initial=2)))}
    if train.facts["end"] is None:
        ends = (tokenizer.token_to_id(mark) for mark in _ENDS)
        layout |= {"layout": "document", "sentence_ends": tuple(number for number in ends if number is not None)}
    data = PackedData(train, seed=args.seed, **layout)
    if kind == "masked":
        asked = PackedData(held, shuffle=False, **layout)
        evaluate = _loss_of(MaskedData(asked, tokenizer), asked.steps, half)
        return Task(MaskedData(data, tokenizer, seed=args.seed), targets_loss, evaluate, data.steps, notes)
    evaluate = evaluation(
        {"held-out": held},
        distinct_unknown=train.facts["distinct_unknown"],
        window=window,
        unknown=-1 if encoder.unknown is None else encoder.unknown,
        tokens=args.batch * args.sequence,
        dtype=half,
    )
    return Task(data, next_token_loss, evaluate, data.steps, notes)


def split(file: PackedFile, share: float, *, seed: int = 0) -> tuple[PackedFile, PackedFile, str]:
    """Split packed documents into training and held-out ones, the same every time; return both and a note for people.

    Of few documents the end of each is held out; at most 65,536 ids in all.
    Raises DataError for a share outside (0, 1), or if one side would be empty.
    """
    if not 0 < share < 1:
        raise DataError(f"the share held out is {share}; expected a number between 0 and 1")
    rows = np.array(file.documents)
    share = min(share, _HELD_OUT / max(1, int(rows["tokens"].sum())))
    if len(rows) >= _FEW:
        chosen = _draw(len(rows), share, seed)
        left, held = np.delete(rows, chosen), rows[chosen]
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
    parts = copy.copy(file), copy.copy(file)
    parts[0].documents, parts[1].documents = left, held  # type: ignore[assignment]
    return *parts, f"{note}: {int(held['tokens'].sum()):,} tokens"


def _draw(count: int, share: float, seed: int) -> NDArray[np.int64]:
    """Return the sorted numbers of a share of `count` things, one at least."""
    return np.sort(np.random.default_rng([seed, count]).permutation(count)[: max(1, round(share * count))])


def _packed_name(paths: Sequence[Path]) -> Path | None:
    """Return the name of packed files, without ending, by any of the three files or the name; None for text."""
    for path in paths:
        name = path.with_suffix("") if path.suffix in _PACKED else path
        if all(name.with_name(name.name + ending).is_file() for ending in _PACKED):
            if len(paths) > 1:
                raise DataError(f"{path} is packed, and other data is given beside it; pack the texts of all together")
            return name
    return None


def _loss_of(data: Batches, steps: Callable[[int], int], half: torch.dtype | None) -> Callable[[Model], dict[str, Any]]:
    """Return the function that measures the mean loss of the first epoch."""
    return mean_loss(targets_loss, lambda: (batch for _, _, batch in islice(data.batches(), steps(0))), half)


def _pairs_task(
    config: ModelConfig,
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    args: TrainArgs,
    valid: Sequence[Path],
    half: torch.dtype | None,
) -> Task:
    pairs, held, notes = list(read_pairs(paths)), list(read_pairs(valid)), []
    if not valid:
        drawn = _draw(len(pairs), args.held_out, args.seed).tolist()
        if len(drawn) >= len(pairs):
            raise DataError(f"{len(pairs)} pairs are too few to hold some out; give more, or valid=FILES")
        notes = [f"held out: {len(drawn):,} of {len(pairs):,} pairs, drawn with seed {args.seed}"]
        held = [pairs[number] for number in drawn]
        pairs = [pair for number, pair in enumerate(pairs) if number not in set(drawn)]
    make = partial(PairData, tokenizer=tokenizer, config=config, rows=args.batch, limit=args.sequence)
    data, asked = (
        make(some, target_limit=min(128, args.sequence // 2), seed=args.seed, shuffle=some is pairs)
        for some in (pairs, held)
    )
    notes.insert(0, f"training data: {len(data):,} pairs, of which {data.cut:,} were cut to {args.sequence} tokens")
    same = {"training data": digest(pairs), "validation data": digest(held)}
    return Task(data, targets_loss, _loss_of(asked, asked.steps, half), data.steps, notes, same)
