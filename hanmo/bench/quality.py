"""How well a model predicts a text with its weights rounded: bits per character as in hanmo/training/score.py.

Knows documents and the logits of the CPU engine; each kind of weights is measured by its own.

    a tokenizer with an end mark and no start mark    E document E    all is predicted but the first E, by the rule
    any other                                         document        from its second token on, as `score` does
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hanmo.bench.speed import Show
from hanmo.bench.subject import Subject
from hanmo.errors import CheckpointError, ConfigError, DataError, MissingFile
from hanmo.pipeline import find_tokenizer
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training.data.documents import read_documents
from hanmo.training.score import Bits, bits_per_character, distinct_unknown_of, token_logprobs

__all__ = ["KINDS", "measure_quality"]

KINDS = ("float32", "bfloat16", "int8", "int4")
WINDOW = 1024  # of models whose positions have no end


def measure_quality(
    subject: Subject,
    text: Path,
    *,
    documents: int | None = None,
    distinct_unknown: int | None = None,
    show: Show = lambda words, done, total: None,
) -> dict[str, Any]:
    """Measure the bits per character of a text in every kind of weights; the subject's own kind is not looked at.

    text: a file that `read_documents` knows.   documents: only the first so many.   show: as for
    `hanmo.bench.speed.measure`.   distinct_unknown: how many unknown characters training saw, as in
    `bits_per_character`; None asks the model's training.json.
    Raises CheckpointError for a model that does not read from left to right, MissingFile without a vocabulary,
    DataError for a text that cannot be read or is too short, ConfigError for another device than the CPU.
    """
    if subject.device != "cpu":
        raise ConfigError(f"device is {subject.device!r}; quality is measured on the CPU engine: leave device out")
    looked = subject.look()
    config = looked.found.config
    if config.is_encoder_decoder or (subject.mask or config.main.mask) != "causal":
        raise CheckpointError(
            f"bits per character need a model that reads from left to right, which this {config.family} does not; "
            "a BERT does with mask='causal'"
        )
    tokenizer = find_tokenizer(subject.path, None, config)
    if tokenizer is None:
        raise MissingFile(f"no vocabulary lies beside {looked.path}; put its vocab.txt or *.model there")
    texts = list(islice(_documents(text), documents))
    encoded = [found for found in (_encode(tokenizer, each) for each in texts) if len(found[0]) > 1]
    if not encoded:
        raise DataError(f"{text} holds no document of two tokens, of {len(texts)}; nothing predicts the first")
    distinct = distinct_unknown_of(looked.path) if distinct_unknown is None else distinct_unknown
    window = config.main.context or WINDOW
    rows: list[dict[str, Any]] = []
    for place, kind in enumerate(KINDS):

        def count(tokens: int, kind: str = kind, place: int = place) -> None:
            total = sum(len(ids) for ids, _ in encoded)
            show(f"predicting in {kind}", place * total + tokens, len(KINDS) * total)

        count(0)
        spent = _spent(replace(subject, weights=kind), tokenizer, encoded, window, count)
        bits = bits_per_character(spent, distinct_unknown=distinct)
        rows.append({"weights": kind, "bits_per_character": bits})
        rows[-1]["to_float32"] = bits / rows[0]["bits_per_character"]
    return {
        "model": {"path": str(looked.path), "family": config.family, "parameters": looked.found.parameters},
        "text": str(text),
        "documents": len(encoded),
        "too_short": len(texts) - len(encoded),
        "characters": spent.characters,
        "tokens": spent.tokens,
        "unknown": spent.unknown,
        "distinct_unknown": distinct,
        "window": window,
        "rows": rows,
    }


def _documents(path: Path) -> Iterator[str]:
    held: list[str] = []
    for part in read_documents([path]):
        held.append(part.text)
        if part.ends:
            yield "".join(held)
            held = []


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], int]:
    """Give a document's ids, the first of which nothing predicts, and the characters that are predicted."""
    ids, special = tokenizer.encode(text, ends=False).ids, tokenizer.special
    if special.end is not None and special.start is None:
        return [special.end, *ids, special.end], len(text)
    return ids, max(1, len(text) - (len(tokenizer.decode(ids[:1])) or 1))


def _spent(
    subject: Subject,
    tokenizer: Tokenizer,
    documents: Sequence[tuple[list[int], int]],
    window: int,
    count: Callable[[int], None],
) -> Bits:
    from hanmo.inference.openvino.engine import OpenVinoEngine

    engine = OpenVinoEngine(subject.convert(), mask=subject.mask, threads=subject.threads)

    def log_probabilities(ids: Sequence[int]) -> list[float]:
        logits = engine.logits(ids)[:-1]
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, np.array(ids[1:])[:, None], -1)[:, 0]
        found: list[float] = (chosen - np.log(np.exp(logits).sum(-1, dtype=np.float64))).tolist()
        return found

    spent, done = Bits(0.0, 0, 0, 0), 0
    for ids, characters in documents:
        logs = token_logprobs(log_probabilities, ids, window=window)
        spent += Bits(-sum(logs), len(logs), characters, sum(id == tokenizer.special.unk for id in ids[1:]))
        done += len(ids)
        count(done)
    return spent
