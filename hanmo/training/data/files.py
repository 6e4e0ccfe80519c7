"""Text and rows out of txt, jsonl, csv, their .xz .gz .bz2 forms and folders of them, in UTF-8 or GB18030.

Knows where files lie, how they are compressed and encoded, and how to say which line of one is broken. Knows not what
a row means.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hanmo.errors import DataError, MissingFile
from hanmo.files import open_file

__all__ = ["JSON", "TABLES", "find_files", "form", "json_rows", "opened", "table_rows", "text_in"]

JSON, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
_FORMS = (".txt", ".text", ".md", *JSON, *TABLES)
_COMPRESSED = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_CHUNK = 1 << 20  # bytes read at once to recognise the encoding
_SNIFF = 1 << 16  # bytes looked at after the first one that is not ASCII


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
