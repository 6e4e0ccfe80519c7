"""Documents and rows out of txt, jsonl and csv files, their .xz .gz .bz2 forms and folders of them, in bounded memory.

Knows how files are compressed and encoded (UTF-8 or GB18030), which line is broken, and where a document ends. Knows no
ids and no windows. A long document of a text file comes in parts of about a million characters; one of a jsonl or csv
file is a line or cell and is read at once.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hanmo.errors import DataError, MissingFile
from hanmo.files import open_file

__all__ = [
    "JSON",
    "TABLES",
    "Part",
    "find_files",
    "form",
    "json_rows",
    "opened",
    "read_documents",
    "table_rows",
    "text_in",
]

JSON, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
_FORMS = (".txt", ".text", ".md", *JSON, *TABLES)
_COMPRESSED = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_CHUNK = 1 << 20  # characters of a part; bytes read at once, and between two reports of progress
_SNIFF = 1 << 16  # bytes looked at after the first one that is not ASCII
_SEPARATORS = {"file": "", "line": "\n", "paragraph": "\n\n"}


@dataclass(frozen=True)
class Part:
    """A piece of a document: text, the name of its source, and whether the document ends here."""

    text: str
    source: str = ""
    ends: bool = True

    def pieces(self, size: int) -> Iterator["Part"]:
        """Yield the part in pieces of `size` to twice as many characters at most, cut where no word reaches over."""
        at = 0
        while len(self.text) - at > 2 * size:
            cut = _safe_cut(self.text, at + size, least=at)
            yield Part(self.text[at:cut], self.source, ends=False)
            at = cut
        yield Part(self.text[at:], self.source, self.ends) if at else self


def read_documents(
    paths: Iterable[str | Path],
    *,
    text_key: str = "text",
    source_key: str = "source",
    document: str = "file",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Part]:
    """Yield the documents of all files as parts, in file order; empty documents are skipped.

    text_key, source_key: fields of jsonl and columns of csv; where there is no source, the file's name is it.
    document: what one document is in a text file: "file", "line", or "paragraph" (parted by an empty line).
    progress: called now and then with the bytes read and the bytes in all.
    Parts of a long document are cut where no word reaches over; only a word of 4,096 letters and more may be parted.
    Raises MissingFile, and DataError naming file and line for binary files, wrong encodings and lines that cannot be
    read.
    """
    if document not in _SEPARATORS:
        raise DataError(f"document is {document!r}, expected one of {', '.join(_SEPARATORS)}")
    files = find_files(paths)
    total = sum(path.stat().st_size for path in files)
    before = told = 0  # bytes of the files that are read, and last told
    for path in files:
        name = path.name.removesuffix("".join(path.suffixes)) or path.name
        empty = True
        with opened(path) as (file, raw):
            if form(path) in JSON:
                parts = _objects(file, path, name, text_key, source_key)
            elif form(path) in TABLES:
                parts = _cells(file, path, name, text_key, source_key)
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


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the data files that paths name, folders walked, in the order given and sorted within a folder.

    Raises MissingFile if a path is not there, DataError if a form is unknown or a folder holds no data file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and form(file) in _FORMS)
            if not inside:
                raise DataError(f"the folder {path} holds no data file; expected files ending in {', '.join(_FORMS)}")
            found += inside
        elif not path.exists():
            raise MissingFile(f"{path} is not there; name a data file or a folder of them")
        elif form(path) not in _FORMS:
            raise DataError(
                f"{path} ends in {path.suffix!r}; expected one of {', '.join(_FORMS)}, or these with .xz .gz .bz2"
            )
        else:
            found.append(path)
    return found


def form(path: Path) -> str:
    """Return the ending that tells what a file holds, without .xz and its like: ".jsonl"."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _COMPRESSED else path.suffix.lower()


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.TextIOWrapper, IO[bytes]]]:
    """Open a file as text, and give with it the file on the disk, whose `tell` says how much of it was read.

    UTF-8 (with or without a mark) and GB18030 are recognised by the first bytes that are not ASCII.
    Raises DataError for binary files, other encodings and damaged archives, naming the line where there is one.
    """
    encoding = _recognise(path)
    newline = "" if form(path) in TABLES else None
    try:
        with open_file(path, error=DataError) as raw, _uncompressed(raw, path) as file:
            yield io.TextIOWrapper(file, encoding=encoding, errors="strict", newline=newline), raw
    except UnicodeDecodeError as error:
        raise _undecodable(path, error) from None
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None


def json_rows(file: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line, what it holds) of JSON lines; empty ones are skipped. Raises DataError naming file and line."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of too many digits, and nesting without end
            where = f"{error.msg} at column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"{path} line {number} is not JSON ({where}); expected one object a line") from None
        yield number, record


def table_rows(file: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where it ends, cells) of csv, or of tsv by tabs; empty rows are skipped.

    Raises DataError naming file and line where quotes are broken.
    """
    before = csv.field_size_limit(sys.maxsize)  # a cell may be a whole book
    rows = csv.reader(file, delimiter="\t" if form(path) == ".tsv" else ",", strict=True)
    try:
        for row in rows:
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num} is not a csv row ({error}); mend the quotes") from None
    finally:
        csv.field_size_limit(before)


def text_in(record: Any, key: str, where: str, *, option: str) -> str:
    """Return the text of a JSON object's field.

    where: file and line, and option: the argument that names the field, both for the message.
    Raises DataError if there is no such text, or one with half of a character.
    """
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


def _objects(file: io.TextIOWrapper, path: Path, name: str, text_key: str, source_key: str) -> Iterator[Part]:
    for number, record in json_rows(file, path):
        text = text_in(record, text_key, f"{path} line {number}", option="text_key")
        if text:
            source = record.get(source_key)
            yield Part(text, name if source is None else str(source))


def _cells(file: io.TextIOWrapper, path: Path, name: str, text_key: str, source_key: str) -> Iterator[Part]:
    rows = table_rows(file, path)
    columns = next(rows, (1, list[str]()))[1]
    if text_key not in columns:
        raise DataError(f"{path} line 1 has columns {columns}, none is {text_key!r}; name the column with text_key")
    at = columns.index(text_key)
    source = columns.index(source_key) if source_key in columns else len(columns)
    for number, row in rows:
        if len(row) <= at:
            raise DataError(f"{path} line {number} ends before column {text_key!r}; mend the row")
        if row[at]:
            yield Part(row[at], "".join(row[source : source + 1]) or name)


def _plain(file: io.TextIOWrapper, name: str, separator: str) -> Iterator[Part]:
    held = ""
    begun = False  # a part of this document was given already
    while chunk := file.read(_CHUNK):
        held += chunk
        if separator:
            *whole, held = held.split(separator)
            for text in whole:
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
    """Return a place at or shortly before `near` whose right side begins with a character that no word reaches over."""
    for at in range(near, max(near - 4096, least), -1):
        character = text[at]
        if character >= "\u2e80" or (character.isascii() and not character.isalnum() and character not in " \n"):
            return at
    return near


def _uncompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    opener: Any = _COMPRESSED.get(path.suffix.lower())
    file: IO[bytes] = opener(raw, "rb") if opener else raw
    return file


def _recognise(path: Path) -> str:
    """Return "utf-8-sig" or "gb18030", by the first bytes that are not ASCII."""
    try:
        with open_file(path, error=DataError) as raw, _uncompressed(raw, path) as file:
            at = 0
            while (chunk := file.read(_CHUNK)) and chunk.isascii():
                if b"\0" in chunk:
                    break
                at += len(chunk)
            chunk += file.read(_SNIFF)
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None
    if at == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} begins as UTF-16 does ({chunk[:2].hex(' ')}); save it as UTF-8")
    zero = chunk.find(b"\0")
    if zero >= 0:
        raise DataError(f"{path} is binary: byte {at + zero} is 0; expected UTF-8 or GB18030 text")
    for encoding in ("utf-8-sig", "gb18030"):
        for cut in range(4):  # the last character may be cut through
            try:
                chunk[: len(chunk) - cut].decode(encoding)
            except UnicodeDecodeError:
                continue
            return encoding
    line = _line_of_fault(chunk)
    raise DataError(f"{path} is neither UTF-8 nor GB18030 near line {line}; save it as UTF-8")


def _line_of_fault(chunk: bytes) -> int:
    try:
        chunk.decode("utf-8")
    except UnicodeDecodeError as error:
        return chunk.count(b"\n", 0, error.start) + 1
    return 1


def _undecodable(path: Path, error: UnicodeDecodeError) -> DataError:
    """Return the error for bytes that break off the encoding recognised at the file's start, with their line."""
    with open_file(path, error=DataError) as raw, _uncompressed(raw, path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(error.encoding)
            except UnicodeDecodeError as fault:
                broken = line[fault.start : fault.start + 4].hex(" ")
                return DataError(
                    f"{path} line {number}: bytes {broken} are not {error.encoding}, which the file began with; "
                    "save the whole file as UTF-8"
                )
    return DataError(f"{path} ends inside a character of {error.encoding}; fetch it again")


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be unpacked ({error}); it is damaged or cut short; fetch it again")
