"""Read documents out of txt, jsonl and csv files, in bounded memory.

Knows where a document ends and how a long one is parted. Knows no encodings of files (files.py), no ids and no windows.
A text file's long document comes in parts of about a million characters and is never whole in memory; a document of a
jsonl or csv file is one line or cell, and is.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hanmo.errors import DataError
from hanmo.training.data.files import JSON, TABLES, find_files, form, json_rows, opened, table_rows, text_in

__all__ = ["Part", "read_documents"]

_SEPARATORS = {"file": "", "line": "\n", "paragraph": "\n\n"}
_CHUNK = 1 << 20  # characters read at once, and of a part; bytes between two reports of progress


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
