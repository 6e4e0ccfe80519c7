"""Read packed ids as batches of windows, by epoch and step, the same every time.

Knows NAME.bin, NAME.documents, NAME.json and how windows are laid over documents. Knows no text, no model and no torch.

Two layouts:
    "stream"    documents one after another, [EOS] between, windows cut wherever they fall; only the last is padded
    "document"  every window within one document, cut at sentence ends where there is one, padded with 0

A window has `window` + 1 ids: ids[:, :-1] are read, ids[:, 1:] predicted; 0 is ignored in the loss.
Neighbouring windows share one id, so every id is predicted exactly once (more often if `stride` is under `window`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import DataError, MissingFile
from hanmo.files import read_json
from hanmo.training.data.pack import DOCUMENT, FORMAT, PackReport

__all__ = ["PackedData", "PackedFile"]

_AGAIN = "; pack the data again"
_MAX_FACTS = 64 << 20  # with the counts of 65,536 sources

Ids = NDArray[np.int64]


class PackedFile:
    """NAME.bin mapped into memory, with its documents and facts.

    ids: [tokens of the file].   documents: rows of hanmo.training.data.pack.DOCUMENT.   facts: what NAME.json says.
    Raises MissingFile, and DataError if the three files do not fit each other or another vocabulary is expected.
    """

    def __init__(self, name: str | Path, *, vocabulary_sha256: str | None = None) -> None:
        self.name = Path(name)
        paths = {kind: self.name.with_name(f"{self.name.name}.{kind}") for kind in ("json", "bin", "documents")}
        for path in paths.values():
            if not path.is_file():
                raise MissingFile(f"{path} is not there; pack the data again")
        self.facts: dict[str, Any] = read_json(paths["json"], error=DataError, limit=_MAX_FACTS, advice=_AGAIN)
        if self.facts.get("format") != FORMAT:
            raise DataError(
                f"{paths['json']} has format {self.facts.get('format')!r}, expected {FORMAT!r}; pack the data again"
            )
        _check_facts(self.facts, paths["json"])
        if vocabulary_sha256 not in (None, self.facts["vocabulary_sha256"]):
            raise DataError(
                f"{self.name} was packed with vocabulary {self.facts['vocabulary_sha256'][:12]}, the model has "
                f"{str(vocabulary_sha256)[:12]}; pack the data again with the model's vocab.txt"
            )
        dtype = np.dtype(self.facts["dtype"]).newbyteorder("<")
        for kind, size in (
            ("bin", (self.facts["tokens"] + _beside(self.facts)) * dtype.itemsize),
            ("documents", self.facts["documents"] * DOCUMENT.itemsize),
        ):
            if paths[kind].stat().st_size != size:
                raise DataError(
                    f"{paths[kind]} has {paths[kind].stat().st_size} bytes, expected {size}; pack the data again"
                )
        if not self.facts["documents"]:
            raise DataError(f"{self.name} holds no documents; pack the data again")
        self.ids = np.memmap(paths["bin"], dtype, "r")
        self.documents = np.memmap(paths["documents"], DOCUMENT, "r")
        self.sources = list(self.facts["sources"])
        self._check_documents(paths["documents"])

    def _check_documents(self, path: Path) -> None:
        """Refuse documents that lie outside of NAME.bin, or of the sources."""
        start, tokens = self.documents["start"], self.documents["tokens"]
        wrong = (start < 0) | (tokens < 0) | (start > len(self.ids)) | (tokens > len(self.ids) - start)
        wrong |= (self.documents["characters"] < 0) | (self.documents["title"] > tokens)
        wrong |= self.documents["source"] >= len(self.sources)
        if wrong.any():
            number = int(wrong.argmax())
            raise DataError(f"{path} says of document {number} what cannot be: {self.documents[number]}{_AGAIN}")


@dataclass(frozen=True)
class _Segments:
    """Runs of NAME.bin in the order in which an epoch reads them, and where windows begin and end in that order."""

    start: Ids  # in NAME.bin, [segments]
    before: Ids  # ids of the epoch before each segment, [segments + 1]
    first: Ids  # of each window, in the epoch, [windows]
    last: Ids  # one past it


class PackedData:
    """Batches [rows, window + 1] of a packed file, fixed by (seed, epoch, step): training may go on from any step.

    window: ids predicted in a row.   rows: of a batch; the last batch of an epoch is filled up with rows of 0.
    weights: how often an epoch reads the documents of a source, 1 where not named; 2.5 is every document twice and,
        spread evenly over the epochs, a third time in every other one; 0 leaves the source out.
    mark_share: share of the readings of a document that begin with its source's mark (see `pack_documents`).
    bare_share: share of the readings that leave the title line out, of documents that have one.
    layout: "stream" or "document".   stride: of "document", ids from one window's start to the next at most; `window`
        if None.   sentence_ends: ids after which "document" likes to cut.   shuffle: False keeps the order of the file.
    Raises DataError for a number out of its range, a source that the file does not hold, or an epoch of nothing.
    """

    def __init__(
        self,
        file: PackedFile,
        *,
        window: int,
        rows: int,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        mark_share: float = 0.0,
        bare_share: float = 0.0,
        layout: str = "stream",
        stride: int | None = None,
        sentence_ends: tuple[int, ...] = (),
        shuffle: bool = True,
    ) -> None:
        _check(file, window, rows, weights or {}, mark_share, bare_share, layout, stride)
        self.file, self.window, self.rows, self.seed = file, window, rows, seed
        self._weights = np.array([(weights or {}).get(source, 1.0) for source in file.sources])
        self._mark_share, self._bare_share, self._shuffle = mark_share, bare_share, shuffle
        self._layout, self._stride, self._ends = layout, stride or window, np.array(sentence_ends, np.int64)
        self._held: tuple[int, _Segments, Ids] | None = None  # epoch, its segments, its order of windows

    def steps(self, epoch: int) -> int:
        """Return the number of batches of an epoch; with broken weights it differs a little between epochs."""
        return -(-len(self._epoch(epoch)[1]) // self.rows)

    def tokens(self, epoch: int) -> int:
        """Return how many ids an epoch predicts."""
        segments, _ = self._epoch(epoch)
        return int((segments.last - segments.first - 1).sum())

    def batch(self, epoch: int, step: int) -> Ids:
        """Return ids [rows, window + 1], int64, 0 where there is nothing.

        Raises DataError if the epoch has no such step.
        """
        segments, order = self._epoch(epoch)
        if not 0 <= step < self.steps(epoch):
            raise DataError(f"epoch {epoch} has steps 0 to {self.steps(epoch) - 1}, asked for {step}")
        chosen = order[step * self.rows : (step + 1) * self.rows]
        return self._gather(segments, chosen)

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Ids]]:
        """Yield (epoch, step, ids) from there on without end, epoch after epoch."""
        while True:
            for number in range(step, self.steps(epoch)):
                yield epoch, number, self.batch(epoch, number)
            epoch, step = epoch + 1, 0

    def _epoch(self, epoch: int) -> tuple[_Segments, Ids]:
        if self._held is None or self._held[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            readings = self._readings(epoch, random)
            segments = self._lay_out(readings, random)
            if not len(segments.first):
                raise DataError(f"epoch {epoch} of {self.file.name} holds no document; raise a weight above 0")
            count = len(segments.first)
            self._held = (epoch, segments, random.permutation(count) if self._shuffle else np.arange(count))
        return self._held[1], self._held[2]

    def _readings(self, epoch: int, random: np.random.Generator) -> Ids:
        """Return the numbers of the documents that an epoch reads, in its order, repeated as the weights say."""
        documents = self.file.documents
        weight = self._weights[documents["source"]]
        phase = np.random.default_rng([self.seed]).random(
            len(documents)
        )  # the same in all epochs: repeats are spread evenly
        times = np.floor((epoch + 1) * weight + phase) - np.floor(epoch * weight + phase)
        readings = np.repeat(np.arange(len(documents)), times.astype(np.int64))
        return random.permutation(readings) if self._shuffle else readings

    def _lay_out(self, readings: Ids, random: np.random.Generator) -> _Segments:
        documents = self.file.documents
        start = documents["start"][readings].astype(np.int64)
        length = documents["tokens"][readings].astype(np.int64)
        bare = random.random(len(readings)) < self._bare_share
        cut = np.where(bare, documents["title"][readings], 0).astype(np.int64)
        start, length = start + cut, length - cut
        marks = np.array(
            [self.file.facts["marks"].get(source, (0, 0)) for source in self.file.sources], np.int64
        ).reshape(-1, 2)
        mark = marks[documents["source"][readings]]
        marked = (random.random(len(readings)) < self._mark_share) & (mark[:, 1] > 0)
        # Two runs a reading, its mark and its text; a mark that is not set has length 0 and is skipped by the search.
        runs = np.stack([mark[:, 0], start], 1).ravel()
        lengths = np.stack([np.where(marked, mark[:, 1], 0), length], 1).ravel()
        if self._layout == "document":
            return self._by_document(runs, lengths)
        if self.file.facts["end"] is not None and len(runs):  # place 0 of the file holds the end mark
            runs, lengths = np.concatenate([[0], runs]), np.concatenate([[1], lengths])
        before = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        first = np.arange(0, max(before[-1] - 1, 0), self.window, dtype=np.int64)
        return _Segments(runs, before, first, np.minimum(first + self.window + 1, before[-1]))

    def _by_document(self, runs: Ids, lengths: Ids) -> _Segments:
        end = self.file.facts["end"]
        if end is not None:  # every document's first window begins with the end mark
            runs = np.stack([np.zeros_like(runs[::2]), runs[::2], runs[1::2]], 1).ravel()
            lengths = np.stack([np.ones_like(lengths[::2]), lengths[::2], lengths[1::2]], 1).ravel()
        each = 2 if end is None else 3
        before = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        first: list[int] = []
        last: list[int] = []
        for number in range(0, len(runs), each):
            begin, stop = int(before[number]), int(before[number + each])
            text = self.file.ids[runs[number + each - 1] :][: lengths[number + each - 1]]
            ends = (
                np.flatnonzero(np.isin(text, self._ends)) + 1 + stop - len(text)
                if len(self._ends)
                else np.empty(0, np.int64)
            )
            for a, b in _windows(begin, stop, self.window, self._stride, ends):
                first.append(a)
                last.append(b)
        return _Segments(runs, before, np.array(first, np.int64), np.array(last, np.int64))

    def _gather(self, segments: _Segments, chosen: Ids) -> Ids:
        width = self.window + 1
        first, last = segments.first[chosen], segments.last[chosen]
        low = np.searchsorted(segments.before, first, "right") - 1
        high = np.searchsorted(segments.before, last, "left")  # one past the last segment that a window touches
        count = high - low
        row = np.repeat(np.arange(len(chosen)), count)
        segment = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + low[row]
        begin = np.maximum(segments.before[segment], first[row])
        length = np.minimum(segments.before[segment + 1], last[row]) - begin
        place = row * width + begin - first[row]  # in the flattened batch
        source = segments.start[segment] + begin - segments.before[segment]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        batch = np.zeros(self.rows * width, np.int64)
        batch[np.repeat(place, length) + within] = self.file.ids[np.repeat(source, length) + within]
        if batch.max() >= self.file.facts["vocabulary_size"]:
            size = self.file.facts["vocabulary_size"]
            raise DataError(f"{self.file.name} holds the id {batch.max()}, the vocabulary {size} words{_AGAIN}")
        return batch.reshape(self.rows, width)


def _check_facts(facts: dict[str, Any], path: Path) -> None:
    """Refuse a NAME.json that says what cannot be; what it says of sizes is held to the files later."""
    counts = [facts.get(name) for name in ("tokens", "documents", "characters", "unknown", "distinct_unknown")]
    marks, end = facts.get("marks"), facts.get("end")
    right = (
        facts.keys() >= PackReport.__dataclass_fields__.keys() - {"outside"}
        and facts["dtype"] in ("uint16", "uint32")
        and isinstance(facts.get("vocabulary_sha256"), str)
        and _count(size := facts.get("vocabulary_size"))
        and all(_count(number) for number in counts)
        and (end is None or (_count(end) and end < size))
        and isinstance(facts.get("sources"), dict)
        and isinstance(marks, dict)
        and all(isinstance(mark, list) and len(mark) == 2 and all(map(_count, mark)) for mark in marks.values())
    )
    ids = facts["tokens"] + _beside(facts) if right else 0
    if not right or any(start + length > ids for start, length in facts["marks"].values()):
        raise DataError(f"{path} lacks a fact of packed data, or holds one that cannot be{_AGAIN}")


def _beside(facts: Mapping[str, Any]) -> int:
    """Return how many ids NAME.bin holds that are no document's: an end mark and the marks of the sources."""
    return sum(length for _, length in facts["marks"].values()) + (facts["end"] is not None)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _windows(begin: int, stop: int, window: int, stride: int, ends: Ids) -> Iterator[tuple[int, int]]:
    """Yield (first, one past the last) of a document's windows, at most window + 1 ids, cut at `ends` if possible."""
    while stop - begin > window + 1:
        limit = begin + window + 1
        near = np.searchsorted(ends, limit, "right") - 1
        cut = int(ends[near]) if near >= 0 and ends[near] > begin + 1 + window // 2 else limit
        yield begin, cut
        begin = min(cut - 1, begin + stride)  # the id before the cut is read again, so that the next one is predicted
    if stop - begin > 1:
        yield begin, stop


def _check(
    file: PackedFile,
    window: int,
    rows: int,
    weights: Mapping[str, float],
    mark_share: float,
    bare_share: float,
    layout: str,
    stride: int | None,
) -> None:
    for name, number in (("window", window), ("rows", rows), ("stride", stride or 1)):
        if number < 1:
            raise DataError(f"{name} is {number}, expected 1 or more")
    for name, share in (("mark_share", mark_share), ("bare_share", bare_share)):
        if not 0 <= share <= 1:
            raise DataError(f"{name} is {share}, expected 0 to 1")
    if layout not in ("stream", "document"):
        raise DataError(f"layout is {layout!r}, expected 'stream' or 'document'")
    for source, weight in weights.items():
        if source not in file.sources:
            raise DataError(
                f"{file.name} holds no source {source!r}, only {', '.join(file.sources)}; name one of these"
            )
        if weight < 0:
            raise DataError(f"the weight of {source} is {weight}, expected 0 or more")
