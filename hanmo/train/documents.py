"""Read documents out of txt, jsonl, csv, their .xz .gz .bz2 forms and folders of them, in bounded memory.

Knows files, their character encodings and where a document ends. Knows no ids and no windows.
A text file's long document comes in parts of about a million characters and is never whole in memory; a document of a
jsonl or csv file is one line or cell, and is.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hanmo.errors import DataError, MissingFile

__all__ = ["Part", "find_files", "read_documents"]

_FORMS = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".csv", ".tsv")
_PACKED = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_SEPARATORS = {"file": "", "line": "\n", "paragraph": "\n\n"}
_CHUNK = 1 << 20  # characters read at once, and of a part
_SNIFF = 1 << 16  # bytes looked at to recognise the encoding, after the first byte that is not ASCII


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
            cut = _safe_cut(self.text, at + size)
            yield Part(self.text[at:cut], self.source, ends=False)
            at = cut
        yield Part(self.text[at:], self.source, self.ends) if at else self


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the data files that paths name, folders walked, in the order given and sorted within a folder.

    Raises MissingFile if a path is not there, DataError if a form is unknown or a folder holds no data file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _form(file) in _FORMS)
            if not inside:
                raise DataError(f"the folder {path} holds no data file; expected files ending in {', '.join(_FORMS)}")
            found += inside
        elif not path.exists():
            raise MissingFile(f"{path} is not there; name a data file or a folder of them")
        elif _form(path) not in _FORMS:
            raise DataError(
                f"{path} ends in {path.suffix!r}; expected one of {', '.join(_FORMS)}, or these with .xz .gz .bz2"
            )
        else:
            found.append(path)
    return found


def read_documents(
    paths: Iterable[str | Path], *, text_key: str = "text", source_key: str = "source", document: str = "file"
) -> Iterator[Part]:
    """Yield the documents of all files as parts, in file order; empty documents are skipped.

    text_key, source_key: fields of jsonl and columns of csv; where there is no source, the file's name is it.
    document: what one document is in a text file: "file", "line", or "paragraph" (parted by an empty line).
    UTF-8 (with or without a mark) and GB18030 are recognised from the first bytes that are not ASCII. Parts of a long
    document are cut where no word reaches over; only a word of 4,096 letters and more may be parted.
    Raises DataError naming file and line for binary files, wrong encodings and lines that cannot be read.
    """
    if document not in _SEPARATORS:
        raise DataError(f"document is {document!r}, expected one of {', '.join(_SEPARATORS)}")
    for path in find_files(paths):
        name = path.name.removesuffix("".join(path.suffixes)) or path.name
        form = _form(path)
        empty = True
        with _open_text(path) as file:
            try:
                if form in (".jsonl", ".ndjson"):
                    parts = _json_lines(file, path, name, text_key, source_key)
                elif form in (".csv", ".tsv"):
                    parts = _table(file, path, name, text_key, source_key)
                else:
                    parts = _plain(file, name, _SEPARATORS[document])
                for part in parts:
                    empty = False
                    yield part
            except UnicodeDecodeError as error:
                raise _undecodable(path, error) from None
            except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
                raise DataError(
                    f"{path} cannot be unpacked ({error}); it is damaged or cut short; fetch it again"
                ) from None
        if empty:
            raise DataError(f"{path} holds no text; remove it or fill it")


def _form(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _PACKED else path.suffix.lower()


def _open_bytes(path: Path) -> IO[bytes]:
    opener: Any = _PACKED.get(path.suffix.lower(), open)
    return opener(path, "rb")


def _open_text(path: Path) -> io.TextIOWrapper:
    encoding = _recognise(path)
    newline = "" if _form(path) in (".csv", ".tsv") else None
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, errors="strict", newline=newline)


def _recognise(path: Path) -> str:
    """Return "utf-8-sig" or "gb18030", by the first bytes that are not ASCII."""
    with _open_bytes(path) as file:
        try:
            at = 0
            while (chunk := file.read(_CHUNK)) and chunk.isascii():
                if b"\0" in chunk:
                    break
                at += len(chunk)
            chunk += file.read(_SNIFF)
        except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path} cannot be unpacked ({error}); it is damaged or cut short; fetch it again"
            ) from None
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
    with _open_bytes(path) as file:
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


def _json_lines(file: io.TextIOWrapper, path: Path, name: str, text_key: str, source_key: str) -> Iterator[Part]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} line {number} is not JSON ({error.msg} at column {error.colno}); expected one object a line"
            ) from None
        text = record.get(text_key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            holds = f"keys {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
            raise DataError(
                f"{path} line {number} has no text in {text_key!r}: it holds {holds}; name the field with text_key"
            )
        if text:
            yield Part(text, str(record.get(source_key, name)))


def _table(file: io.TextIOWrapper, path: Path, name: str, text_key: str, source_key: str) -> Iterator[Part]:
    before = csv.field_size_limit(sys.maxsize)  # a cell may be a whole book
    try:
        rows = csv.DictReader(file, delimiter="\t" if _form(path) == ".tsv" else ",", strict=True)
        if text_key not in (rows.fieldnames or ()):
            raise DataError(
                f"{path} line 1 has columns {rows.fieldnames}, none is {text_key!r}; name the column with text_key"
            )
        for row in rows:
            text = row[text_key]
            if text is None:
                raise DataError(f"{path} line {rows.line_num} ends before column {text_key!r}; mend the row")
            if text:
                yield Part(text, row.get(source_key) or name)
    except csv.Error as error:
        raise DataError(f"{path} line {rows.reader.line_num} is not a csv row ({error}); mend the quotes") from None
    finally:
        csv.field_size_limit(before)


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


def _safe_cut(text: str, near: int) -> int:
    """Return a place at or shortly before `near` whose right side begins with a character that no word reaches over."""
    for at in range(near, max(near - 4096, 0), -1):
        character = text[at]
        if not (character.isascii() and (character.isalnum() or character in " \n")):
            return at
    return near
