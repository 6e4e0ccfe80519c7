"""Measure a 5-gram model with modified Kneser-Ney smoothing on packed data: the bar that a neural model must clear.

    python benchmarks/ngram.py FOLDER [--order 5] [--out ngram.json]

FOLDER holds train.* and valid-*.*, as examples/small_model/prepare.py makes them; every training document counts once,
without its source mark. NumPy alone.

The model is Chen and Goodman's interpolated modified Kneser-Ney (1999), as KenLM and SRILM estimate it:

    p(w | h) = (c(hw) - D(c(hw))) / c(h.) + gamma(h) p(w | h'),    h' is h without its first token
    gamma(h) = (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.)
    Dk = k - (k + 1) Y n(k+1) / n(k),    Y = n1 / (n1 + 2 n2),    n(k): n-grams of this order whose c is k

c is the count at the highest order and, below it, the number of distinct tokens seen before the n-gram; an n-gram that
begins with the end mark, which opens every document and has nothing before it, keeps its count. The unigrams are
interpolated with the uniform distribution over all tokens but [PAD]. No n-gram reaches over the start of a document.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanmo.training.data.packed import PackedFile
from hanmo.training.score import Bits, bits_per_character


@dataclass
class Level:
    """The n-grams of one order; an n-gram's number is its place in `keys`, a unigram's number its id.

    keys: sorted, number of the n-gram's first n - 1 tokens at the order below * vocab_size + last token, [n-grams].
    counts: c, [n-grams].   total: c(h.), gamma: both by the context's number, [contexts]; total 0 predicts nothing.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.int32]
    total: NDArray[np.float64]
    gamma: NDArray[np.float64]
    discounts: tuple[float, float, float]


class KneserNey:
    """A modified Kneser-Ney model of a stream of ids, in which `end` opens and closes every document.

    stream: [tokens], begins and ends with `end`.   vocab_size: size of the vocabulary; id 0 is never predicted.
    """

    def __init__(self, stream: NDArray[np.integer], *, order: int, vocab_size: int, end: int) -> None:
        self.vocab_size, self.end = vocab_size, end
        self.levels: list[Level] = []
        stream = stream.astype(np.int32)
        reach = _reach(stream, end, order)
        keys = np.arange(vocab_size, dtype=np.int64)
        counts = np.bincount(stream[1:], minlength=vocab_size).astype(np.int32)
        number, below, opening = stream, 1, np.zeros(vocab_size, bool)
        for length in range(1, order + 1):
            if length == order:
                self._add(keys, counts, below)
                return
            longer = _count(number, stream, np.flatnonzero(reach > length), vocab_size)
            continued = np.bincount(number[longer.where], minlength=len(keys)).astype(np.int32)
            self._add(keys, np.where(opening, counts, continued), below)
            below = len(keys)
            keys, counts, number = longer.keys, longer.counts, longer.number
            opening = stream[longer.where - length] == end

    def log_probabilities(self, stream: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the natural log of p of every token of stream but the first, [tokens - 1].

        stream: [tokens], begins with `end`, which also parts the documents.
        """
        stream = stream.astype(np.int64)
        reach = _reach(stream, self.end, len(self.levels))
        p = np.full(len(stream), 1.0 / (self.vocab_size - 1))
        context = np.zeros(len(stream), np.int64)  # number, at the order below, of the tokens before each place
        for length, level in enumerate(self.levels, 1):
            key = context * self.vocab_size + stream
            place = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
            seen = (level.keys[place] == key) & (context >= 0)
            count = np.where(seen, level.counts[place], 0)
            known = (context >= 0) & (reach >= length) & (level.total[context] > 0)
            total = np.where(known, level.total[context], 1.0)
            spared = count - np.array([0.0, *level.discounts])[np.minimum(count, 3)]
            p = np.where(known, spared / total + level.gamma[context] * p, p)
            context = np.concatenate([[-1], np.where(seen & (reach >= length), place, -1)[:-1]])
            if length == 1:  # the end mark that opens a document is a context too
                context[1:] = stream[:-1]
        return np.log(p[1:])

    def _add(self, keys: NDArray[np.int64], counts: NDArray[np.int32], contexts: int) -> None:
        discounts = _discounts(counts)
        prefix = keys // self.vocab_size
        total = np.bincount(prefix, counts, contexts)
        gamma = np.bincount(prefix, np.array([0.0, *discounts])[np.minimum(counts, 3)], contexts)
        np.divide(gamma, total, out=gamma, where=total > 0)
        self.levels.append(Level(keys, counts, total, gamma, discounts))


@dataclass
class _Counted:
    keys: NDArray[np.int64]  # [n-grams], sorted
    counts: NDArray[np.int32]  # [n-grams]
    where: NDArray[np.int64]  # a place in the stream at which each ends, [n-grams]
    number: NDArray[np.int32]  # of the n-gram that ends at each place of the stream, -1 where none does


def _count(
    number: NDArray[np.int32], stream: NDArray[np.int32], places: NDArray[np.int64], vocab_size: int
) -> _Counted:
    """Count the n-grams that end at `places`, given the numbers of those one token shorter."""
    key = number[places - 1].astype(np.int64) * vocab_size + stream[places]
    order = np.argsort(key)
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    counts = np.diff(first, append=len(key)).astype(np.int32)
    numbers = np.full(len(stream), -1, np.int32)
    numbers[places[order]] = np.repeat(np.arange(len(first), dtype=np.int32), counts)
    return _Counted(key[first], counts, places[order[first]], numbers)


def _reach(stream: NDArray[np.integer], end: int, order: int) -> NDArray[np.int8]:
    """Return how many tokens lie from the end mark before a place up to it, both counted, at most `order`."""
    place = np.arange(len(stream), dtype=np.int32)
    opened = np.maximum.accumulate(np.where(stream == end, place, 0))
    reach = np.ones(len(stream), np.int8)
    reach[1:] = np.minimum(place[1:] - opened[:-1] + 1, order)
    return reach


def _discounts(counts: NDArray[np.int32]) -> tuple[float, float, float]:
    """Return D1, D2 and D3+; 0.5, 1 and 1.5 (KenLM's fallback) where the counts of counts do not give them."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if not (n1 and n2 and n3):
        return 0.5, 1.0, 1.5
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 <= d <= k for k, d in enumerate(found, 1)) else (0.5, 1.0, 1.5)


def documents_of(file: PackedFile) -> NDArray[np.integer]:
    """Return a packed file as a stream for the model: end mark, document, end mark ...; no source marks."""
    return np.concatenate([[file.facts["end"]], file.ids[int(file.documents["start"][0]) :]]).astype(np.int32)


def measure(model: KneserNey, file: PackedFile) -> Bits:
    """Return what the model spends on a packed file."""
    nats = -float(model.log_probabilities(documents_of(file)).sum())
    facts = file.facts
    return Bits(nats=nats, tokens=facts["tokens"], characters=facts["characters"], unknown=facts["unknown"])


def main() -> None:
    """Count the training data, measure every held-out file, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--out", type=Path, help="figures as JSON (FOLDER/ngram.json)")
    given = parser.parse_args()
    began = time.perf_counter()
    train = PackedFile(given.folder / "train")
    facts = train.facts
    model = KneserNey(documents_of(train), order=given.order, vocab_size=facts["vocabulary_size"], end=facts["end"])
    counted = time.perf_counter() - began
    held_out = {}
    for path in sorted(given.folder.glob("valid-*.json")):
        file = PackedFile(path.with_suffix(""), vocabulary_sha256=facts["vocabulary_sha256"])
        held_out[path.stem.removeprefix("valid-")] = measure(model, file)
    result = report(held_out, distinct_unknown=facts["distinct_unknown"])
    result |= {
        "order": given.order,
        "ngrams": [len(level.keys) for level in model.levels],
        "discounts": [level.discounts for level in model.levels],
        "training_tokens": facts["tokens"],
        "vocabulary_sha256": facts["vocabulary_sha256"],
        "seconds_to_count": round(counted, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }
    out = given.out or given.folder / "ngram.json"
    out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for name, row in result["files"].items():
        print(f"{name:24}{row['characters']:10,} characters {row['bits_per_character']:8.4f} bits per character")
    print(f"counted in {counted:.0f} s, all in {result['seconds']:.0f} s; {out}")


def report(held_out: dict[str, Bits], *, distinct_unknown: int, apart: tuple[str, ...] = ("zhouzuoren",)) -> dict:
    """Return bits per character of every file and of all together; files in `apart` are not in the total."""
    total = Bits(0.0, 0, 0, 0)
    for name, spent in held_out.items():
        total = total if name in apart else total + spent
    files = {
        name: {
            "bits_per_character": bits_per_character(spent, distinct_unknown=distinct_unknown),
            "nats": spent.nats,
            "tokens": spent.tokens,
            "characters": spent.characters,
            "unknown": spent.unknown,
        }
        for name, spent in {**held_out, "together": total}.items()
    }
    return {"files": files, "apart": list(apart), "distinct_unknown": distinct_unknown}


if __name__ == "__main__":
    main()
