"""Documents and rows of txt, jsonl and csv files, also as .xz .gz .bz2, and of folders of these, in bounded memory.

Knows compression, encodings (UTF-8, GB18030), the line of an error, and where a document ends; makes no ids. A long
document of a text file comes in parts of about a million characters; one of a jsonl or csv file is read at once.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from hanmo.errors import DataError, MissingFile
from hanmo.files import open_file

JSON, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
_FORMS = (".txt", ".text", ".md", *JSON, *TABLES)
_RECORDS = ".tfrecord"
_COMPRESSED: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_CHUNK = 1 << 20  # characters of a part; bytes read at once, and between two reports of progress
_SNIFF = 1 << 16  # bytes examined after the first one that is not ASCII
_SEPARATORS = {"file": "", "line": "\n", "paragraph": "\n\n"}


@dataclass(frozen=True)
class Part:
    """A piece of a document: text, the name of its source, and whether the document ends here.

    ids: of a document that is stored as ids; then text is empty.
    """

    text: str
    source: str = ""
    ends: bool = True
    ids: tuple[int, ...] = ()

    def pieces(self, size: int) -> Iterator["Part"]:
        """Yield the part in pieces of `size` to twice as many characters, cut between words."""
        at = 0
        while len(self.text) - at > 2 * size:
            cut = _safe_cut(self.text, at + size, least=at)
            yield Part(self.text[at:cut], self.source, ends=False)
            at = cut
        yield Part(self.text[at:], self.source, self.ends) if at else self


RecordReader = Callable[[IO[bytes], Path, str], Iterator[Part]]


def read_documents(
    paths: Iterable[str | Path],
    *,
    text_key: str = "text",
    source_key: str = "source",
    document: str = "file",
    records: RecordReader | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Part]:
    """Yield the documents of all files as parts, in file order; empty documents are skipped.

    text_key, source_key: fields of jsonl and columns of csv; without a source, the file's name is taken.
    document: what one document of a text file is: "file", "line", or "paragraph" (separated by an empty line).
    records: reads .tfrecord files, of which it is given the stream, the path and the source; None refuses them.
    progress: called about once a megabyte with the bytes read and the total.
    A long document is cut between words; only a word of 4,096 letters or more may be cut.
    Raises MissingFile, and DataError naming file and line for binary files, other encodings and unreadable lines.
    """
    if document not in _SEPARATORS:
        raise DataError(f"document is {document!r}, expected one of {', '.join(_SEPARATORS)}")
    files = find_files(paths, _FORMS if records is None else (*_FORMS, _RECORDS))
    total = sum(path.stat().st_size for path in files)
    before = told = 0  # bytes of the files before this one; bytes last reported
    for path in files:
        name = path.name.removesuffix("".join(path.suffixes)) or path.name
        empty = True
        with ExitStack() as stack:
            if records is not None and form(path) == _RECORDS:
                stream, raw = stack.enter_context(_unpacked(path))
                parts = records(stream, path, name)
            else:
                file, raw = stack.enter_context(opened(path))
                if form(path) in JSON + TABLES:
                    parts = _structured(file, path, name, text_key, source_key)
                else:
                    parts = _plain(file, name, _SEPARATORS[document])
            for part in parts:
                empty = False
                yield part
                if progress is not None and before + raw.tell() - told >= _CHUNK:
                    told = before + raw.tell()
                    progress(told, total)
        if empty:
            raise DataError(f"{path} holds no text; remove it or fill it")
        before += path.stat().st_size


def find_files(paths: Iterable[str | Path], forms: tuple[str, ...] = _FORMS) -> list[Path]:
    """Return the data files that paths name, in the order given; folders are walked, sorted.

    Raises MissingFile for a path that does not exist, DataError for an unknown form or a folder without data files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and form(file) in forms)
            if not inside:
                raise DataError(f"the folder {path} holds no data file; expected files ending in {', '.join(forms)}")
            found += inside
        elif not path.exists():
            raise MissingFile(f"{path} is not there; name a data file or a folder of them")
        elif form(path) not in forms:
            raise DataError(
                f"{path} ends in {path.suffix!r}; expected one of {', '.join(forms)}, or these with .xz .gz .bz2"
            )
        else:
            found.append(path)
    return found


def form(path: Path) -> str:
    """Return the ending that tells what a file holds, without .xz and the like: ".jsonl"."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _COMPRESSED else path.suffix.lower()


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.TextIOWrapper, IO[bytes]]]:
    """Open a file as text; yield it and the file on the disk, whose `tell` is the progress.

    UTF-8 (with or without a mark) and GB18030 are recognised by the first bytes that are not ASCII.
    Raises DataError for binary files, other encodings and damaged archives, naming the line where there is one.
    """
    encoding = _recognise(path)
    newline = "" if form(path) in TABLES else None
    try:
        with _unpacked(path) as (file, raw):
            yield io.TextIOWrapper(file, encoding=encoding, errors="strict", newline=newline), raw
    except UnicodeDecodeError as error:
        raise _undecodable(path, error.encoding) from None


def read_fields(
    file: io.TextIOWrapper, path: Path, keys: Mapping[str, str], *, optional: str = "", headless: bool = False
) -> Iterator[tuple[str, list[Any]]]:
    """Yield (file and line, the texts under `keys`, and what is under `optional` or None) of jsonl, csv or tsv.

    keys: the argument that names a field → the field.   headless: a table of as many columns as keys, whose first row
    does not hold them, has no header.
    Raises DataError naming file and line for a row that is broken or lacks a field, and for half of a character.
    """
    if form(path) in JSON:
        for number, record in _json_rows(file, path):
            where = f"{path} line {number}"
            texts = [_text(record, key, where, option) for option, key in keys.items()]
            yield where, [*texts, record.get(optional)]
        return
    rows, wanted = _table_rows(file, path), list(keys.values())
    number, columns = next(rows, (1, list[str]()))
    if not set(wanted) <= set(columns):
        if not headless or len(columns) != len(wanted):
            raise DataError(
                f"{path} line {number} has {len(columns)} columns, {columns[:5]}, and not "
                f"{' and '.join(map(repr, wanted))} among them; name the columns with {' and '.join(keys)}"
            )
        rows, columns = chain([(number, columns)], rows), wanted
    places = [columns.index(key) for key in wanted]
    further = columns.index(optional) if optional in columns else len(columns)
    for number, row in rows:
        if len(row) <= max(places):
            raise DataError(f"{path} line {number} has {len(row)} columns, expected {max(places) + 1}; mend the row")
        yield f"{path} line {number}", [*(row[at] for at in places), "".join(row[further : further + 1]) or None]


def _json_rows(file: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of too many digits, and nesting without end
            where = f"{error.msg} at column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"{path} line {number} is not JSON ({where}); expected one object a line") from None
        yield number, record


def _table_rows(file: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, list[str]]]:
    before = csv.field_size_limit(sys.maxsize)  # a cell may be a whole book
    rows = csv.reader(file, delimiter="\t" if form(path) == ".tsv" else ",", strict=True)
    try:
        yield from ((rows.line_num, row) for row in rows if row)
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num} is not a csv row ({error}); mend the quotes") from None
    finally:
        csv.field_size_limit(before)


def _text(record: Any, key: str, where: str, option: str) -> str:
    text = record.get(key) if isinstance(record, dict) else None
    if not isinstance(text, str):
        holds = f"keys {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise DataError(f"{where} has no text in {key!r}: it holds {holds}; name the field with {option}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds the lone surrogate \\u{ord(text[error.start]):04x} in {key!r}, which is half of a "
            "character; remove it, or write the file anew from its source"
        ) from None
    return text


def _structured(file: io.TextIOWrapper, path: Path, name: str, text_key: str, source_key: str) -> Iterator[Part]:
    for _, (text, source) in read_fields(file, path, {"text_key": text_key}, optional=source_key):
        if text:
            yield Part(text, name if source is None else str(source))


def _plain(file: io.TextIOWrapper, name: str, separator: str) -> Iterator[Part]:
    held = ""
    begun = False  # a part of this document was given already
    while chunk := file.read(_CHUNK):
        held += chunk
        if separator:
            *complete, held = held.split(separator)
            for text in complete:
                if text.strip("\n") or begun:
                    yield Part(text, name)
                begun = False
        while len(held) > 2 * _CHUNK:
            at = _safe_cut(held, _CHUNK)
            yield Part(held[:at], name, ends=False)
            held, begun = held[at:], True
    held = held.removesuffix("\n")
    if held or begun:
        yield Part(held, name)


def _safe_cut(text: str, near: int, *, least: int = 0) -> int:
    """Return a position at or shortly before `near` where no word continues."""
    for at in range(near, max(near - 4096, least), -1):
        character = text[at]
        if character >= "\u2e80" or (character.isascii() and not character.isalnum() and character not in " \n"):
            return at
    return near


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file; yield it decompressed, and as it is on the disk."""
    opener = _COMPRESSED.get(path.suffix.lower())
    try:
        with open_file(path, error=DataError) as raw:
            yield opener(raw, "rb") if opener else raw, raw
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); it is damaged or cut short; fetch it again") from None


def _recognise(path: Path) -> str:
    """Return "utf-8-sig" or "gb18030", by the first bytes that are not ASCII."""
    with _unpacked(path) as (file, _):
        at = 0
        while (chunk := file.read(_CHUNK)) and chunk.isascii():
            if b"\0" in chunk:
                break
            at += len(chunk)
        chunk += file.read(_SNIFF)
    if at == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} begins as UTF-16 does ({chunk[:2].hex(' ')}); save it as UTF-8")
    zero = chunk.find(b"\0")
    if zero >= 0:
        raise DataError(f"{path} is binary: byte {at + zero} is 0; expected UTF-8 or GB18030 text")
    faults = []
    for encoding in ("utf-8-sig", "gb18030"):
        for cut in range(4):  # the last character may be cut through
            try:
                chunk[: len(chunk) - cut].decode(encoding)
            except UnicodeDecodeError as error:
                faults.append(error.start)
            else:
                return encoding
    line = chunk.count(b"\n", 0, faults[0]) + 1
    raise DataError(f"{path} is neither UTF-8 nor GB18030 near line {line}; save it as UTF-8")


def _undecodable(path: Path, encoding: str) -> DataError:
    """Return the error for bytes that break the encoding recognised at the file's start, with their line."""
    with _unpacked(path) as (file, _):
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as fault:
                broken = line[fault.start : fault.start + 4].hex(" ")
                return DataError(
                    f"{path} line {number}: bytes {broken} are not {encoding}, which the file began with; "
                    "save the whole file as UTF-8"
                )
    return DataError(f"{path} ends inside a character of {encoding}; fetch it again")
