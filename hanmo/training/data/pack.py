"""Pack documents into files of token ids that training maps into memory.

Knows tokenizers, encoding in several processes and the files. Knows no windows, no batches (packed.py) and no model.

    NAME.bin        ids, uint16 or uint32, little endian:  [EOS] mark mark ... | document [EOS] | document [EOS] | ...
    NAME.documents  one row a document: start, source, tokens, tokens of its title line, characters
    NAME.json       format, digest of the vocabulary, counts; written last
"""

import errno
import json
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hanmo.checkpoint.staged import Staged
from hanmo.cores import cores
from hanmo.errors import DataError, TokenizerError
from hanmo.tokenizers.codes import codes_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.wordpiece import WordPiece
from hanmo.training.data.documents import Part, read_documents
from hanmo.training.data.tfrecord import read_records

FORMAT = "hanmo-packed-1"
DOCUMENT = np.dtype([("start", "<i8"), ("tokens", "<i8"), ("characters", "<i8"), ("title", "<u4"), ("source", "<u4")])
_BATCH = 1 << 20  # characters sent to a process at a time
_FEW = 4  # batches that are encoded faster than processes start
_TITLE = 120  # characters; a first line longer than this is no title
_SOURCES = 1 << 16  # more are taken for a mistake, because the counts of each are kept in memory
_COUNTED = ("documents", "tokens", "characters", "unknown")


class TokenEncoder:
    """A tokenizer for packing, picklable for other processes.

    separator: the token put after every document. None takes the vocabulary's end mark ([EOS], </s>, <|endoftext|>) but
    not BERT's [SEP], because GPT2_ML was trained without a mark.
    sha256: digest of the tokens, a newline after each, and of whether texts are cut into words.
    end: id after a document, or None.   unknown: id of [UNK], or None.   dtype: uint16 where ids fit, else uint32.
    Raises TokenizerError if the vocabulary does not hold the separator.
    """

    def __init__(self, tokenizer: Tokenizer, *, separator: str | None = None) -> None:
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)]
        cut = ["cut into words"] if isinstance(tokenizer, WordPiece) and tokenizer.pre_tokenizes else []
        self.sha256 = sha256("".join(token + "\n" for token in [*tokens, *cut]).encode()).hexdigest()
        self.unknown = tokenizer.special.unk
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self.end = tokenizer.special.end
        if separator is not None:
            self.end = tokenizer.token_to_id(separator)
            if self.end is None:
                raise TokenizerError(
                    f"the separator is {separator!r}, which is none of the vocabulary's {self.vocab_size:,} tokens; "
                    "name one of them, such as [SEP]"
                )
        elif self.end is not None and tokens[self.end] == "[SEP]":
            self.end = None
        self._outside: dict[int, bool] = {}  # by code point

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Return the ids of a text without marks, [tokens]."""
        return self.tokenizer.encode_array(text).astype(self.dtype)

    def outside(self, text: str) -> Mapping[str, int]:
        """Count the characters of text that by themselves become [UNK]."""
        if self.unknown is None:
            return {}
        counts = np.bincount(codes_of(text))
        found = {}
        for code in np.flatnonzero(counts).tolist():
            if code not in self._outside:
                self._outside[code] = self.unknown in self.tokenizer.encode_array(chr(code))
            if self._outside[code]:
                found[chr(code)] = int(counts[code])
        return found


@dataclass
class PackReport:
    """What was packed; NAME.json holds all fields but the last."""

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
    outside: Counter[str] = field(default_factory=Counter)  # counts of the characters outside the vocabulary

    def to_json(self) -> str:
        """Return the content of NAME.json."""
        facts = {name: value for name, value in asdict(self).items() if name != "outside"}
        return json.dumps(facts, ensure_ascii=False, indent=1) + "\n"


def pack(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    encoder: TokenEncoder,
    text_key: str = "text",
    source_key: str = "source",
    document: str = "file",
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Pack txt, jsonl, csv, tfrecord (also .xz .gz .bz2) and folders of them into out.bin, out.documents and out.json.

    paths, text_key, source_key, document, progress: as in `read_documents`.   The rest: as in `pack_documents`.
    """
    records = partial(read_records, tokenizer=encoder.tokenizer)
    parts = read_documents(
        paths, text_key=text_key, source_key=source_key, document=document, records=records, progress=progress
    )
    return pack_documents(parts, out, encoder=encoder, processes=processes)


def pack_documents(
    parts: Iterable[Part],
    out: str | Path,
    *,
    encoder: TokenEncoder,
    marks: Mapping[str, str] | None = None,
    titles: bool = False,
    processes: int | None = None,
) -> PackReport:
    """Pack documents, in order, into out.bin, out.documents and out.json; the same parts give the same bytes.

    marks: text by source that the reader may put before a document, such as {"poetry": "【诗】"}.
    titles: record the first line of documents that begin with 《, so that the reader may leave it out.
    processes: number of encoding processes; 1 stays in this process, None takes all cores unless the data is small.
        Memory grows with them, not with the corpus. With more than one, call this under `if __name__ == "__main__":`,
        as multiprocessing requires.
    A document's parts must follow each other. Nothing is replaced before everything is written.
    Raises DataError if there are no documents, the last one never ends, there are more than 65,536 sources, a process
    dies, or no space is left.
    """
    out = Path(out)
    finals = [out.with_name(out.name + suffix) for suffix in (".bin", ".documents", ".json")]
    report = PackReport(
        dtype=str(encoder.dtype),
        vocabulary_size=encoder.vocab_size,
        vocabulary_sha256=encoder.sha256,
        end=encoder.end,
    )
    encoded_marks = {source: encoder.encode(text) for source, text in (marks or {}).items()}
    try:
        with Staged() as staged:
            made = [staged.new(final) for final in finals]
            with ExitStack() as files:
                ids, documents, facts = (files.enter_context(path.open("wb")) for path in made)
                _write(ids, documents, report, encoded_marks, _encoded(_batches(parts), encoder, titles, processes))
                facts.write(report.to_json().encode())
                for file in (ids, documents, facts):
                    file.flush()
                    os.fsync(file.fileno())
            for path, final in zip(made, finals, strict=True):
                staged.place(path, final)
            finals[2].unlink(missing_ok=True)  # unreadable without it: old and new files are never mixed
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"no space is left while writing {finals[0]}; nothing was replaced; free space and pack again"
        ) from error
    return report


@dataclass
class _Encoded:
    ids: NDArray[np.unsignedinteger]
    rows: list[tuple[int, int, int, int, str, bool]]  # tokens, characters, unknown, title, source, ends
    outside: Mapping[str, int]


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    held: list[Part] = []
    size = 0
    for piece in chain.from_iterable(part.pieces(_BATCH) for part in parts):
        held.append(piece)
        size += len(piece.text) + len(piece.ids) + 1
        if size >= _BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held


def _encoded(
    batches: Iterator[list[Part]], encoder: TokenEncoder, titles: bool, processes: int | None
) -> Iterator[_Encoded]:
    """Yield the batches encoded, in order; at most two a process are in flight."""
    few = list(islice(batches, _FEW)) if processes is None else []
    batches = chain(few, batches)
    count = processes or cores()
    if count == 1 or (processes is None and len(few) < _FEW):
        yield from (_encode_batch(batch, encoder, titles) for batch in batches)
        return
    # Spawned, because the progress display runs in a thread and forking with threads may hang.
    with ProcessPoolExecutor(count, get_context("spawn"), _set_worker, (encoder, titles)) as pool:
        waiting: deque[Future[_Encoded]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(_work, batch))
                if len(waiting) >= 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                f"one of {count} processes that encode was ended from outside, perhaps for want of memory; nothing "
                "was replaced; pack again with fewer processes"
            ) from None


_worker: dict[str, Any] = {}  # the arguments of a process


def _set_worker(encoder: TokenEncoder, titles: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which ends this process
    _worker.update(encoder=encoder, titles=titles)


def _work(batch: list[Part]) -> _Encoded:
    return _encode_batch(batch, **_worker)


def _encode_batch(batch: list[Part], encoder: TokenEncoder, titles: bool) -> _Encoded:
    ids: list[NDArray[np.unsignedinteger]] = []
    rows = []
    lacking: list[str] = []
    for part in batch:
        found = np.array(part.ids, encoder.dtype) if part.ids else encoder.encode(part.text)
        unknown = 0 if encoder.unknown is None else int((found == encoder.unknown).sum())
        if unknown:
            lacking.append(part.text)
        # Of ids, each unknown one stands for a character.
        characters = len(encoder.tokenizer.decode(part.ids)) + unknown if part.ids else len(part.text)
        line = part.text.find("\n", 0, _TITLE) if titles and part.text.startswith("《") else -1
        title = len(encoder.encode(part.text[: line + 1])) if line > 0 else 0
        ids.append(found)
        if part.ends and encoder.end is not None:
            ids.append(np.array([encoder.end], found.dtype))
        rows.append((len(found), characters, unknown, title, part.source, part.ends))
    return _Encoded(np.concatenate(ids), rows, encoder.outside("".join(lacking)))


def _write(
    ids: IO[bytes],
    documents: IO[bytes],
    report: PackReport,
    marks: Mapping[str, NDArray[np.unsignedinteger]],
    batches: Iterator[_Encoded],
) -> None:
    """Write encoded batches to the files and count them in the report."""
    dtype, end = np.dtype(report.dtype).newbyteorder("<"), int(report.end is not None)
    at = ids.write(np.array([report.end] * end, dtype).tobytes()) // dtype.itemsize
    for source, mark in marks.items():
        report.marks[source] = (at, len(mark))
        at += ids.write(mark.astype(dtype).tobytes()) // dtype.itemsize
    numbers: dict[str, int] = {}
    current: list[int] = []  # start, tokens, characters, title, source of the document that has not ended
    for batch in batches:
        done = []
        for tokens, characters, unknown, title, source, ends in batch.rows:
            number = numbers.setdefault(source, len(numbers))
            if number >= _SOURCES:
                raise DataError(
                    f"there are more than {_SOURCES:,} sources, the last {source!r}; name another field for them "
                    "with source_key, or one that is not there to take the files' names"
                )
            tokens += end * ends
            current = current or [at, 0, 0, title, number]
            current[1] += tokens
            current[2] += characters
            at += tokens
            counts = report.sources.setdefault(source, dict.fromkeys(_COUNTED, 0))
            for name, amount in zip(_COUNTED, (int(ends), tokens, characters, unknown), strict=True):
                counts[name] += amount
            if ends:
                done.append(tuple(current))
                current = []
        report.outside.update(batch.outside)
        ids.write(batch.ids.astype(dtype, copy=False).tobytes())
        documents.write(np.array(done, DOCUMENT).tobytes())
    if current:
        source = list(numbers)[current[4]]
        raise DataError(f"the last document of source {source!r} never ended; give its last part with ends=True")
    for name in _COUNTED:
        setattr(report, name, sum(counts[name] for counts in report.sources.values()))
    if not report.documents:
        raise DataError("there was no document to pack; give files that hold text")
    report.distinct_unknown = len(report.outside)
