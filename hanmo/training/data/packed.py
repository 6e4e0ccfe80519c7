"""Read packed ids as batches of windows, by epoch and step, the same every time.

Knows NAME.bin, NAME.documents, NAME.json and how windows are laid over documents. Knows no text, no model and no torch.

Two layouts:
    "stream"    documents one after another, [EOS] between, windows cut wherever they fall; only the last is padded
    "document"  every window within one document, cut at sentence ends where there is one, padded with 0

A window has `window` + 1 ids: ids[:, :-1] are read, ids[:, 1:] predicted; 0 is ignored in the loss.
Neighbouring windows share one id, so every id is predicted exactly once (more often if `stride` is under `window`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import DataError, MissingFile
from hanmo.files import read_json
from hanmo.training.data.epochs import Epochs
from hanmo.training.data.pack import DOCUMENT, FORMAT, PackReport

_AGAIN = "; pack the data again"
_MAX_FACTS = 64 << 20  # with the counts of 65,536 sources

Ids = NDArray[np.int64]


class PackedFile:
    """NAME.bin mapped into memory, with its documents and facts.

    ids: [tokens of the file].   documents: rows of hanmo.training.data.pack.DOCUMENT.   facts: NAME.json.
    Raises MissingFile, and DataError if the three files do not fit each other or another vocabulary is expected.
    """

    def __init__(self, name: str | Path, *, vocabulary_sha256: str | None = None) -> None:
        self.name = Path(name)
        paths = {kind: self.name.with_name(f"{self.name.name}.{kind}") for kind in ("json", "bin", "documents")}
        for path in paths.values():
            if not path.is_file():
                raise MissingFile(f"{path} is not there{_AGAIN}")
        facts: dict[str, Any] = read_json(paths["json"], error=DataError, limit=_MAX_FACTS, advice=_AGAIN)
        if facts.get("format") != FORMAT:
            raise DataError(f"{paths['json']} has format {facts.get('format')!r}, expected {FORMAT!r}{_AGAIN}")
        if not _plausible(facts):
            raise DataError(f"{paths['json']} lacks a fact of packed data, or holds one that cannot be{_AGAIN}")
        if vocabulary_sha256 not in (None, facts["vocabulary_sha256"]):
            raise DataError(
                f"{self.name} was packed with vocabulary {facts['vocabulary_sha256'][:12]}, the model has "
                f"{str(vocabulary_sha256)[:12]}{_AGAIN} with the model's vocab.txt"
            )
        dtype = np.dtype(facts["dtype"]).newbyteorder("<")
        sizes = {"bin": _count_ids(facts) * dtype.itemsize, "documents": facts["documents"] * DOCUMENT.itemsize}
        for kind, size in sizes.items():
            if (found := paths[kind].stat().st_size) != size:
                raise DataError(f"{paths[kind]} has {found} bytes, expected {size}{_AGAIN}")
        if not facts["documents"]:
            raise DataError(f"{self.name} holds no documents{_AGAIN}")
        self.facts, self.sources = facts, list(facts["sources"])
        self.ids = np.memmap(paths["bin"], dtype, "r")
        self.documents = rows = np.memmap(paths["documents"], DOCUMENT, "r")
        wrong = (rows["start"] < 0) | (rows["start"] > len(self.ids)) | (rows["tokens"] < 0)
        wrong |= (rows["tokens"] > len(self.ids) - rows["start"]) | (rows["characters"] < 0)
        wrong |= (rows["title"] > rows["tokens"]) | (rows["source"] >= len(self.sources))
        if wrong.any():
            number = int(wrong.argmax())
            raise DataError(f"{paths['documents']} says of document {number} what cannot be: {rows[number]}{_AGAIN}")


class _Epoch(NamedTuple):
    """Runs of NAME.bin in the order in which an epoch reads them, and the windows, as positions in that order."""

    number: int
    start: Ids  # of each run, in NAME.bin, [runs]
    before: Ids  # ids of the epoch before each run, [runs + 1]
    first: Ids  # of each window, [windows], in the order of the batches
    last: Ids  # one past it


class PackedData(Epochs):
    """Batches [rows, window + 1] of a packed file, int64, 0 where there is nothing; fixed by (seed, epoch, step).

    window: ids predicted in a row.   rows: of a batch; the last batch of an epoch is filled up with rows of 0.
    weights: how often an epoch reads the documents of a source, 1 where not named; 2.5 is every document twice and,
        spread evenly over the epochs, a third time in every other one; 0 leaves the source out.
    mark_share: share of the readings of a document that begin with its source's mark (see `pack_documents`).
    bare_share: share of the readings that leave the title line out, of documents that have one.
    layout: "stream" or "document".   stride: of "document", ids from one window's start to the next at most; `window`
        if None.   sentence_ends: ids after which "document" prefers to cut.   shuffle: False keeps the file's order.
    Raises DataError for a number out of its range, a source that the file does not hold, or an epoch without documents.
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
        for name, number in (("window", window), ("rows", rows), ("stride", stride or 1)):
            if number < 1:
                raise DataError(f"{name} is {number}, expected 1 or more")
        for name, share in (("mark_share", mark_share), ("bare_share", bare_share)):
            if not 0 <= share <= 1:
                raise DataError(f"{name} is {share}, expected 0 to 1")
        if layout not in ("stream", "document"):
            raise DataError(f"layout is {layout!r}, expected 'stream' or 'document'")
        for source, weight in (weights or {}).items():
            if source not in file.sources:
                raise DataError(
                    f"{file.name} holds no source {source!r}, only {', '.join(file.sources)}; name one of these"
                )
            if weight < 0:
                raise DataError(f"the weight of {source} is {weight}, expected 0 or more")
        self.file, self.window, self.rows, self.seed = file, window, rows, seed
        self._weights = np.array([(weights or {}).get(source, 1.0) for source in file.sources])
        marks = [file.facts["marks"].get(source, (0, 0)) for source in file.sources]
        self._marks = np.array(marks, np.int64).reshape(-1, 2)
        self._mark_share, self._bare_share, self._shuffle = mark_share, bare_share, shuffle
        self._layout, self._stride, self._ends = layout, stride or window, np.array(sentence_ends, np.int64)
        self._held: _Epoch | None = None

    def steps(self, epoch: int = 0) -> int:
        """Return the number of batches of an epoch; with fractional weights it differs between epochs."""
        return -(-len(self._epoch(epoch).first) // self.rows)

    def tokens(self, epoch: int) -> int:
        """Return how many ids an epoch predicts."""
        found = self._epoch(epoch)
        return int((found.last - found.first - 1).sum())

    def _epoch(self, epoch: int) -> _Epoch:
        if self._held is not None and self._held.number == epoch:
            return self._held
        random = np.random.default_rng([self.seed, epoch])
        # A document's phase is the same in all epochs, so that its repeats are spread evenly.
        phase = np.random.default_rng([self.seed]).random(len(self.file.documents))
        weight = self._weights[self.file.documents["source"]]
        times = np.floor((epoch + 1) * weight + phase) - np.floor(epoch * weight + phase)
        readings = np.repeat(np.arange(len(phase)), times.astype(np.int64))
        rows = self.file.documents[random.permutation(readings) if self._shuffle else readings]
        bare = random.random(len(rows)) < self._bare_share
        cut = np.where(bare, rows["title"], 0).astype(np.int64)
        mark = self._marks[rows["source"]]
        marked = random.random(len(rows)) < self._mark_share
        # Runs of a reading: the end mark at 0 (of the stream only the first has one), its source's mark, its text. The
        # search for a window's runs skips those of length 0.
        ends = np.full(len(rows), int(self.file.facts["end"] is not None))
        if self._layout == "stream":
            ends[1:] = 0
        start = np.stack([np.zeros_like(ends), mark[:, 0], rows["start"] + cut], 1).ravel()
        length = np.stack([ends, np.where(marked, mark[:, 1], 0), rows["tokens"] - cut], 1).ravel()
        before = np.concatenate([[0], np.cumsum(length)])
        if self._layout == "stream":
            first = np.arange(0, max(before[-1] - 1, 0), self.window)
            last = np.minimum(first + self.window + 1, before[-1])
        else:
            spans = [span for number in range(2, len(start), 3) for span in self._windows(start, before, number)]
            first, last = np.array(spans, np.int64).reshape(-1, 2).T
        if not len(first):
            raise DataError(f"epoch {epoch} of {self.file.name} holds no document; raise a weight above 0")
        if self._shuffle:
            order = random.permutation(len(first))
            first, last = first[order], last[order]
        self._held = _Epoch(epoch, start, before, first, last)
        return self._held

    def _windows(self, start: Ids, before: Ids, text: int) -> Iterator[tuple[int, int]]:
        """Yield (first, one past the last) of the windows of the document whose text is a run, cut at sentence ends."""
        begin, stop = int(before[text - 2]), int(before[text + 1])
        ids = self.file.ids[start[text] :][: stop - before[text]]
        ends = np.flatnonzero(np.isin(ids, self._ends)) + 1 + before[text]
        while stop - begin > self.window + 1:
            cut = begin + self.window + 1
            near = np.searchsorted(ends, cut, "right") - 1
            if near >= 0 and ends[near] > begin + 1 + self.window // 2:
                cut = int(ends[near])
            yield begin, cut
            # The id before the cut is read again, so that the next one is predicted.
            begin = min(cut - 1, begin + self._stride)
        if stop - begin > 1:
            yield begin, stop

    def _batch(self, epoch: int, step: int) -> Ids:
        found, width = self._epoch(epoch), self.window + 1
        chosen = slice(step * self.rows, (step + 1) * self.rows)
        first, last = found.first[chosen], found.last[chosen]
        low = np.searchsorted(found.before, first, "right") - 1
        count = np.searchsorted(found.before, last, "left") - low  # of runs that a window touches
        row = np.repeat(np.arange(len(first)), count)
        run = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + low[row]
        begin = np.maximum(found.before[run], first[row])
        length = np.minimum(found.before[run + 1], last[row]) - begin
        place = row * width + begin - first[row]  # in the flattened batch
        source = found.start[run] + begin - found.before[run]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        batch = np.zeros(self.rows * width, np.int64)
        batch[np.repeat(place, length) + within] = self.file.ids[np.repeat(source, length) + within]
        if batch.max() >= (size := self.file.facts["vocabulary_size"]):
            raise DataError(f"{self.file.name} holds the id {batch.max()}, the vocabulary {size} words{_AGAIN}")
        return batch.reshape(self.rows, width)


def _plausible(facts: dict[str, Any]) -> bool:
    """Whether NAME.json holds facts of the right types; sizes are compared with the files later."""
    numbers = ("tokens", "documents", "characters", "unknown", "distinct_unknown", "vocabulary_size")
    marks, end = facts.get("marks"), facts.get("end")
    return (
        facts.keys() >= PackReport.__dataclass_fields__.keys() - {"outside"}
        and facts["dtype"] in ("uint16", "uint32")
        and isinstance(facts["vocabulary_sha256"], str)
        and all(_is_count(facts[name]) for name in numbers)
        and (end is None or (_is_count(end) and end < facts["vocabulary_size"]))
        and isinstance(facts["sources"], dict)
        and isinstance(marks, dict)
        and all(isinstance(mark, list) and len(mark) == 2 and all(map(_is_count, mark)) for mark in marks.values())
        and all(sum(mark) <= _count_ids(facts) for mark in marks.values())
    )


def _count_ids(facts: Mapping[str, Any]) -> int:
    """Return how many ids NAME.bin holds: those of documents, an end mark, and the marks of the sources."""
    marks = sum(length for _, length in facts["marks"].values())
    return int(facts["tokens"]) + marks + (facts["end"] is not None)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
