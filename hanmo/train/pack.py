"""Pack documents into files of token ids that training maps into memory.

Knows encoding in many processes and the files that result. Knows no windows, no batches (packed.py) and no model.

    NAME.bin        ids, uint16 or uint32, little endian:  [EOS] mark mark ... | document [EOS] | document [EOS] | ...
    NAME.documents  a row a document: where it starts, its source, tokens, tokens of its title line, characters
    NAME.json       what the other two are, digest of the vocabulary, counts; written last
"""

import errno
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import DataError
from hanmo.train.documents import Part, read_documents

__all__ = ["DOCUMENT", "FORMAT", "Encoder", "PackReport", "pack", "pack_documents"]

FORMAT = "hanmo-packed-1"
DOCUMENT = np.dtype([("start", "<i8"), ("tokens", "<i8"), ("characters", "<i8"), ("title", "<u4"), ("source", "<u4")])
_BATCH = 1 << 20  # characters sent to a process at once
_TITLE = 120  # characters; a first line longer than this is no title


class Encoder(Protocol):
    """What packing asks of a tokenizer; it must be picklable to use more than one process."""

    @property
    def tokens(self) -> Sequence[str]:
        """The vocabulary, by id."""

    @property
    def sha256(self) -> str:
        """Digest of the vocabulary."""

    @property
    def end(self) -> int | None:
        """Id put after every document; None puts nothing."""

    @property
    def unknown(self) -> int:
        """Id of a character outside the vocabulary."""

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Return the ids of text."""

    def outside(self, text: str) -> set[str]:
        """Return the distinct characters of text that the vocabulary does not hold."""


@dataclass
class PackReport:
    """What was packed; NAME.json holds the same."""

    format: str = FORMAT
    dtype: str = "uint16"
    tokens: int = 0
    documents: int = 0
    characters: int = 0
    unknown: int = 0
    distinct_unknown: int = 0
    vocabulary_size: int = 0
    vocabulary_sha256: str = ""
    end: int | None = None
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)  # source: (start, tokens) in NAME.bin
    sources: dict[str, dict[str, int]] = field(default_factory=dict)  # in the order of their numbers


def pack(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    encoder: Encoder,
    text_key: str = "text",
    source_key: str = "source",
    document: str = "file",
    processes: int | None = None,
    progress: bool = True,
) -> PackReport:
    """Pack txt, jsonl, csv (also .xz .gz .bz2) and folders of them into out.bin, out.documents and out.json.

    paths, text_key, source_key, document: as in `read_documents`.   The rest: as in `pack_documents`.
    """
    parts = read_documents(paths, text_key=text_key, source_key=source_key, document=document)
    return pack_documents(parts, out, encoder=encoder, processes=processes, progress=progress)


def pack_documents(
    parts: Iterable[Part],
    out: str | Path,
    *,
    encoder: Encoder,
    marks: Mapping[str, str] | None = None,
    titles: bool = False,
    processes: int | None = None,
    progress: bool = True,
) -> PackReport:
    """Pack documents, in order, into out.bin, out.documents and out.json; the same parts give the same bytes.

    marks: text by source that the reader may set before a document, such as {"poetry": "【诗】"}.
    titles: note the first line of documents that begin with 《, so that the reader may leave it out.
    processes: encoders at work; all cores by default, 1 stays in this process. They bound the memory, not the corpus.
        A script that uses more than one calls this under `if __name__ == "__main__":`, as multiprocessing asks.
    A document's parts must follow each other. Nothing is replaced before everything is written.
    Raises DataError if there are no documents, the last one never ends, or no space is left.
    """
    out = Path(out)
    report = PackReport(
        dtype=str(np.dtype(np.uint16 if len(encoder.tokens) <= 1 << 16 else np.uint32)),
        vocabulary_size=len(encoder.tokens),
        vocabulary_sha256=encoder.sha256,
        end=encoder.end,
    )
    outside: set[str] = set()
    with _Beside(out) as files, _Progress(progress) as shown:
        writer = _Writer(files, report)
        writer.write_marks({source: encoder.encode(text) for source, text in (marks or {}).items()})
        for batch in _encoded(_batches(parts), encoder, titles, processes):
            writer.write(batch)
            outside |= batch.outside
            shown.update(report.tokens, report.documents)
        writer.close()
        if not report.documents:
            raise DataError("there was no document to pack; give files that hold text")
        report.distinct_unknown = len(outside)
        files.finish(report)
    return report


@dataclass
class _Encoded:
    ids: NDArray[np.unsignedinteger]
    rows: list[tuple[int, int, int, int, str, bool]]  # tokens, characters, unknown, title, source, ends
    outside: set[str]


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    held: list[Part] = []
    size = 0
    for part in parts:
        for piece in part.pieces(_BATCH):
            held.append(piece)
            size += len(piece.text) + 1
            if size >= _BATCH:
                yield held
                held, size = [], 0
    if held:
        yield held


def _encoded(
    batches: Iterable[list[Part]], encoder: Encoder, titles: bool, processes: int | None
) -> Iterator[_Encoded]:
    """Yield the batches encoded, in order; at most two a process are under way."""
    count = processes or os.cpu_count() or 1
    if count == 1:
        yield from (_encode_batch(batch, encoder, titles) for batch in batches)
        return
    # Spawned, not forked: the progress display runs in a thread, and a fork beside threads may hang.
    with ProcessPoolExecutor(count, get_context("spawn"), _set_worker, (encoder, titles)) as pool:
        waiting: deque[Future[_Encoded]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_work, batch))
            if len(waiting) >= 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker: dict[str, Any] = {}


def _set_worker(encoder: Encoder, titles: bool) -> None:
    _worker.update(encoder=encoder, titles=titles)


def _work(batch: list[Part]) -> _Encoded:
    return _encode_batch(batch, _worker["encoder"], _worker["titles"])


def _encode_batch(batch: list[Part], encoder: Encoder, titles: bool) -> _Encoded:
    ids: list[NDArray[np.unsignedinteger]] = []
    rows = []
    outside: set[str] = set()
    for part in batch:
        found = encoder.encode(part.text)
        unknown = int((found == encoder.unknown).sum())
        if unknown:
            outside |= encoder.outside(part.text)
        line = part.text.find("\n", 0, _TITLE) if titles and part.text.startswith("《") else -1
        title = len(encoder.encode(part.text[: line + 1])) if line > 0 else 0
        ids.append(found)
        if part.ends and encoder.end is not None:
            ids.append(np.array([encoder.end], found.dtype))
        rows.append((len(found), len(part.text), unknown, title, part.source, part.ends))
    return _Encoded(np.concatenate(ids), rows, outside)


class _Writer:
    """Put encoded batches into the files and count them into the report."""

    def __init__(self, files: "_Beside", report: PackReport) -> None:
        self._files, self._report = files, report
        self._written = 0
        self._document: list[int] | None = None  # start, tokens, characters, title, source of the one under way
        self._numbers: dict[str, int] = {}

    def write_marks(self, marks: dict[str, NDArray[np.unsignedinteger]]) -> None:
        if self._report.end is not None:
            self._put(np.array([self._report.end]))
        for source, ids in marks.items():
            self._report.marks[source] = (self._written, len(ids))
            self._put(ids)

    def write(self, batch: _Encoded) -> None:
        end = int(self._report.end is not None)
        at = self._written
        done = []
        for tokens, characters, unknown, title, source, ends in batch.rows:
            counts = self._report.sources.setdefault(
                source, dict.fromkeys(("documents", "tokens", "characters", "unknown"), 0)
            )
            number = self._numbers.setdefault(source, len(self._numbers))
            self._document = self._document or [at, 0, 0, title, number]
            self._document[1] += tokens + end * ends
            self._document[2] += characters
            at += tokens + end * ends
            for name, amount in zip(counts, (int(ends), tokens + end * ends, characters, unknown), strict=True):
                counts[name] += amount
                setattr(self._report, name, getattr(self._report, name) + amount)
            if ends:
                done.append(tuple(self._document))
                self._document = None
        self._put(batch.ids)
        self._files.documents.write(np.array(done, DOCUMENT).tobytes())

    def close(self) -> None:
        if self._document:
            source = list(self._numbers)[self._document[4]]
            raise DataError(f"the last document of source {source!r} never ended; give its last part with ends=True")

    def _put(self, ids: NDArray[Any]) -> None:
        self._files.ids.write(ids.astype(np.dtype(self._report.dtype).newbyteorder("<"), copy=False).tobytes())
        self._written += len(ids)


class _Beside:
    """The three files, written beside as .part and renamed together; removed if anything fails."""

    ids: IO[bytes]
    documents: IO[bytes]

    def __init__(self, out: Path) -> None:
        self._targets = [out.with_name(out.name + suffix) for suffix in (".bin", ".documents", ".json")]
        self._parts = [target.with_name(target.name + ".part") for target in self._targets]
        self._open: list[IO[bytes]] = []

    def __enter__(self) -> "_Beside":
        self._targets[0].parent.mkdir(parents=True, exist_ok=True)
        self._open = [part.open("wb") for part in self._parts]
        self.ids, self.documents = self._open[0], self._open[1]
        return self

    def finish(self, report: PackReport) -> None:
        self._open[2].write((json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n").encode())
        for file in self._open:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._targets[2].unlink(missing_ok=True)  # without its json the pair is no packed data: no mixture is ever read
        for part, target in zip(self._parts, self._targets, strict=True):
            os.replace(part, target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        for file, part in zip(self._open, self._parts, strict=True):
            try:
                file.close()  # flushes, so a full disk fails here once more
            except OSError:
                pass
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"no space is left while writing {self._targets[0]}; nothing was replaced; free space and pack again"
            ) from error


class _Progress:
    """A line of progress on a terminal, or nothing."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __enter__(self) -> "_Progress":
        if self._wanted:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._task = self._bar.add_task("packing")
            self._bar.start()
        return self

    def update(self, tokens: int, documents: int) -> None:
        if self._wanted:
            self._bar.update(self._task, description=f"{tokens:,} tokens of {documents:,} documents")

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            self._bar.stop()
