"""Bits per character of a text by type of weights, from the logits of the CPU engine; see hanmo/training/score.py.

a tokenizer with an end mark and no start mark    E document E    every token but the first E is predicted
any other                                         document        predicted from its second token on, as in `score`
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hanmo.bench.speed import Show
from hanmo.bench.subject import Subject
from hanmo.errors import CheckpointError, ConfigError, DataError, MissingFile
from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights
from hanmo.pipeline import find_tokenizer
from hanmo.training.data.documents import read_documents
from hanmo.training.score import Bits, bits_per_character, distinct_unknown_of, token_logprobs

KINDS = ("float32", "bfloat16", "int8", "int4")
WINDOW = 1024  # for models without a longest position


def measure_quality(
    subject: Subject,
    text: Path,
    *,
    documents: int | None = None,
    distinct_unknown: int | None = None,
    show: Show = lambda title, done, total: None,
) -> dict[str, Any]:
    """Measure the bits per character of a text in each type of weights; the subject's own is ignored.

    text: a file that `read_documents` reads.   documents: only the first so many.   show: as for
    `hanmo.bench.speed.measure`.   distinct_unknown: number of unknown characters in training, as in
    `bits_per_character`; None reads the model's training.json.
    Raises CheckpointError for a model that is not causal, MissingFile without a vocabulary, DataError for a text that
    cannot be read or is too short, ConfigError for another device than the CPU.
    """
    if subject.device != "cpu":
        raise ConfigError(f"device is {subject.device!r}; quality is measured on the CPU engine: leave device out")
    looked = subject.look()
    config = looked.found.config
    if config.is_encoder_decoder or (subject.mask or config.main.mask) != "causal":
        raise CheckpointError(
            f"bits per character need a causal model, which this {config.family} is not; a BERT is with mask='causal'"
        )
    tokenizer = find_tokenizer(subject.path, None, config)
    if tokenizer is None:
        raise MissingFile(f"there is no vocabulary beside {looked.path}; put its vocab.txt or *.model there")
    texts, special = list(islice(_documents(text), documents)), tokenizer.special
    encoded = []  # the ids of each document, of which the first is not predicted, and the number of its characters
    for each in texts:
        ids, characters = tokenizer.encode(each, ends=False).ids, len(each)
        if special.end is not None and special.start is None:
            ids = [special.end, *ids, special.end]
        else:
            characters = max(1, characters - (len(tokenizer.decode(ids[:1])) or 1))
        if len(ids) > 1:
            encoded.append((ids, characters))
    if not encoded:
        raise DataError(f"{text} holds no document of two tokens, of {len(texts)}; the first is not predicted")
    distinct = distinct_unknown_of(looked.path) if distinct_unknown is None else distinct_unknown
    window = config.main.context or WINDOW
    total, done = len(KINDS) * sum(len(ids) for ids, _ in encoded), 0
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        engine = OpenVinoEngine(open_weights(subject.path, weights=kind), mask=subject.mask, threads=subject.threads)
        spent = Bits(0.0, 0, 0, 0)
        for ids, characters in encoded:
            logs = token_logprobs(partial(_log_probabilities, engine), ids, window=window)
            spent += Bits(-sum(logs), len(logs), characters, sum(id == special.unk for id in ids[1:]))
            done += len(ids)
            show(f"predicting in {kind}", done, total)
        bits = bits_per_character(spent, distinct_unknown=distinct)
        rows.append({"weights": kind, "bits_per_character": bits})
        rows[-1]["to_float32"] = bits / rows[0]["bits_per_character"]
    counts = {name: getattr(spent, name) for name in ("characters", "tokens", "unknown")}
    return {
        "model": {"path": str(looked.path), "family": config.family, "parameters": looked.found.parameters},
        "text": str(text), "documents": len(encoded), "too_short": len(texts) - len(encoded), **counts,
        "distinct_unknown": distinct, "window": window, "rows": rows,
    }  # fmt: skip


def _documents(path: Path) -> Iterator[str]:
    held: list[str] = []
    for part in read_documents([path]):
        held.append(part.text)
        if part.ends:
            yield "".join(held)
            held = []


def _log_probabilities(engine: OpenVinoEngine, ids: Sequence[int]) -> list[float]:
    logits = engine.logits(ids)[:-1]
    logits -= logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, np.array(ids[1:])[:, None], -1)[:, 0]
    found: list[float] = (chosen - np.log(np.exp(logits).sum(-1, dtype=np.float64))).tolist()
    return found
