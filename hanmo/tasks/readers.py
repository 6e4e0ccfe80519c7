"""Labelled data in the formats of other tools, read as rows; spans become half-open code points of the row's text.

    read_data(path)                      the format is recognized by the path and the first line
    read_data(path, format="doccano")    see FORMATS

Knows files and rows. Knows no kind of task.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from hanmo.errors import ConfigError, DataError
from hanmo.files import MAX_BYTES, parse_json, read_bytes
from hanmo.tasks import annotations
from hanmo.tasks.rows import Row, read_rows, spans_of

Source: TypeAlias = str | Path | Iterable[Row | Mapping[str, Any]]

_TAG = re.compile(r"O|([BIMESLU])(?:[-_](.+))?")
_KEYS = {
    "text": "text", "sentence": "text", "content": "text", "review": "text", "query": "text",
    "a": "a", "text_a": "a", "text1": "a", "sentence1": "a", "question1": "a",
    "b": "b", "text_b": "b", "text2": "b", "sentence2": "b", "question2": "b",
    "label": "label", "labels": "label", "class": "label", "score": "score",
    "文本": "text", "句子": "text", "内容": "text", "评论": "text", "标签": "label", "类别": "label", "分类": "label",
    "文本1": "a", "句子1": "a", "文本2": "b", "句子2": "b", "分数": "score", "得分": "score", "相似度": "score",
}  # fmt: skip


def read_data(source: Source, *, format: str | None = None) -> list[Row]:
    """Read labelled rows of a file, or of a folder with one folder of texts for each label; or take rows in memory.

    format: key of FORMATS; None recognizes it. Labels that are whole numbers become strings.
    Raises DataError naming the line for what is not of the format, for a span whose text is another than the file says,
    and for a file without rows; ConfigError for an unknown format; MissingFile.
    """
    if not isinstance(source, str | Path):
        return [_with_names(row) for row in read_rows(source)]
    path = Path(source)
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    rows = list(FORMATS[format or recognize(path)](path))
    if not rows and path.is_dir():
        raise DataError(f"no file LABEL/NAME.txt is in {path}; expected a folder of texts for each label")
    if not rows:
        raise DataError(f"{path} is empty; expected labelled rows")
    for row in rows:
        if "spans" in row.data:
            spans_of(row)
    return [_with_names(row) for row in rows]


def _with_names(row: Row) -> Row:
    """Return a row whose labels are strings, where they are whole numbers."""
    label, labels = row.data.get("label"), row.data.get("labels")
    if type(label) is int:
        return Row(row.where, {**row.data, "label": str(label)})
    if isinstance(labels, list) and any(type(each) is int for each in labels):
        return Row(row.where, {**row.data, "labels": [str(each) if type(each) is int else each for each in labels]})
    return row


def recognize(path: Path) -> str:
    """Return the name of the format that a path has by its suffix and its first lines.

    Raises DataError if it has none, MissingFile.
    """
    if path.is_dir():
        return "folders"
    if path.suffix in (".csv", ".tsv"):
        return "table"
    text = read_text(path).lstrip()
    if text[:1] in ("{", "["):
        return annotations.recognize(next(_objects(path), Row("", {})).data)
    lines = [line for line in text.split("\n")[:50] if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; expected labelled rows")
    cells = [_cells(line) for line in lines]
    if all(len(each) > 1 and _TAG.fullmatch(each[-1]) for each in cells if each[0] != "-DOCSTART-"):
        return "columns"
    if all("\t" in line for line in lines):
        return "table"
    if any("  " in line for line in lines):
        return "words"
    raise DataError(f"the format of {path} is not known; name it by format, one of {', '.join(FORMATS)}")


def _columns(path: Path) -> Iterator[Row]:
    """Read a token and its tag a line, BIO or BMES (BIOES, BILOU), with an empty line between texts."""
    some: list[tuple[int, str, str]] = []
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        cells = _cells(line.rstrip("\r"))
        if len(cells) > 1 and cells[0] != "-DOCSTART-":
            some.append((number, cells[0] or " ", cells[-1]))
        elif line.strip() and cells[0] != "-DOCSTART-":
            raise DataError(f"{path.name}:{number}: the line is {line[:100]!r}; expected a token and its tag")
        elif some:
            yield _tagged(path, some)
            some = []


def _tagged(path: Path, lines: Sequence[tuple[int, str, str]]) -> Row:
    text, spans, words = "", list[dict[str, Any]](), list[str]()
    open_label: str | None = None
    for number, token, tag in lines:
        found = _TAG.fullmatch(tag)
        if found is None:
            raise DataError(f"{path.name}:{number}: the tag is {tag!r}; expected O, or B-, I-, M-, E-, S- and a label")
        if text and len(token + words[-1]) > 2 and _is_ascii_word(text[-1]) and _is_ascii_word(token[0]):
            text += " "
        prefix, label = found.groups()
        if prefix is None:
            open_label = None
        elif prefix in "BSU" or open_label != (label or ""):
            spans.append({"start": len(text), "stop": 0, "label": label or ""})
        text += token
        words.append(token)
        if prefix is not None:
            spans[-1]["stop"] = len(text)
            open_label = None if prefix in "ESLU" else label or ""
    where = f"{path.name}:{lines[0][0]}"
    bare = [span for span in spans if not span["label"]]
    if not bare:
        return Row(where, {"text": text, "spans": spans})
    if len(bare) < len(spans) or sum(span["stop"] - span["start"] for span in spans) < len(text):
        raise DataError(f"{where}: a tag names no label; expected B-LABEL, or tags of words without O")
    return Row(where, {"words": [text[span["start"] : span["stop"]] for span in spans]})


def _words(path: Path) -> Iterator[Row]:
    """Read lines of words with spaces between them, as of the SIGHAN bakeoff."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if words := line.split():
            yield Row(f"{path.name}:{number}", {"words": words})


def _table(path: Path) -> Iterator[Row]:
    """Read columns with tabs, or commas in a .csv, between them; the first line may name them."""
    reader = csv.reader(StringIO(read_text(path)), **_dialect(path))
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: it is no table: {error}") from None
    if not lines:
        return
    if names := _header(lines[0][1]):
        names = names if "b" in names else ["text" if name == "a" else name for name in names]
        lines = lines[1:]
    else:
        names = _guess(path, [cells for _, cells in lines])
    for number, cells in lines:
        if len(cells) != len(names):
            raise DataError(f"{path.name}:{number}: it has {len(cells)} columns, the first line has {len(names)}")
        row = Row(f"{path.name}:{number}", dict(zip(names, cells, strict=True)))
        yield row if "score" not in names else Row(row.where, {**row.data, "score": _number(row)})


def has_header(path: Path) -> bool:
    """Return whether the first line of a table names its columns."""
    first = read_text(path).lstrip().split("\n")[:1]
    return bool(_header(next(csv.reader(first, **_dialect(path)), [])))


def _dialect(path: Path) -> dict[str, Any]:
    return {"delimiter": ","} if path.suffix == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


def _header(cells: Sequence[str]) -> list[str]:
    """Return the names of the columns if these are the cells of a header."""
    first = [cell.strip().lower() for cell in cells]
    known = sum(cell in _KEYS for cell in first) >= min(2, len(first))
    return [_KEYS.get(cell, cell) for cell in first] if known else []


def _guess(path: Path, lines: Sequence[Sequence[str]]) -> list[str]:
    """Name the columns of a table without a first line that does: the label's has the fewest different values."""
    count = len(lines[0])
    if count not in (2, 3) or len(lines) == 1:
        raise DataError(
            f"{path.name}:1: columns are not named; begin with a line such as text, label or a, b, label, separated as "
            "the columns are"
        )
    columns = list(zip(*(line for line in lines if len(line) == count), strict=True))
    label = min(range(count), key=lambda n: (len(set(columns[n])), sum(map(len, columns[n]))))
    names = ["text"] if count == 2 else ["a", "b"]
    is_score = all(re.fullmatch(r"-?\d+\.\d+|-?\d+", cell) for cell in columns[label])
    names.insert(label, "score" if is_score and any("." in cell for cell in columns[label]) else "label")
    return names


def _number(row: Row) -> float:
    try:
        return float(row.data["score"])
    except ValueError:
        raise row.error(f"'score' is {row.data['score'][:100]!r}; expected a number") from None


def _folders(path: Path) -> Iterator[Row]:
    """Read one text from each file LABEL/NAME.txt, as of THUCNews."""
    for file in sorted(path.glob("*/*.txt")):
        yield Row(f"{file.parent.name}/{file.name}", {"text": read_text(file).strip(), "label": file.parent.name})


def _objects(path: Path) -> Iterator[Row]:
    """Yield the JSON objects of a file: one a line, those of a list, or the only one."""
    text = read_text(path)
    first, _, rest = text.lstrip().partition("\n")
    if first.startswith("{") and (first.rstrip().endswith("}") or not rest.strip()):
        yield from read_rows(path)
        return
    value = parse_json(text, str(path), error=DataError, kind=list if first.startswith("[") else dict, unique=True)
    for number, each in enumerate(value if isinstance(value, list) else [value], 1):
        where = f"{path.name}, item {number}" if isinstance(value, list) else path.name
        if not isinstance(each, dict):
            raise DataError(f"{where} is {str(each)[:100]!r}; expected a JSON object")
        yield Row(where, each)


def _exported(path: Path, *, name: str) -> Iterator[Row]:
    return annotations.convert(_objects(path), name)


FORMATS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "rows": _objects,
    "columns": _columns,
    "words": _words,
    "table": _table,
    "folders": _folders,
    **{name: partial(_exported, name=name) for name in annotations.NAMES},
}
"""Name → reader. "rows" are Hanmo's own; docs/tasks.md describes all."""


def _cells(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split(" ")


def _is_ascii_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def read_text(path: Path) -> str:
    """Read a file in UTF-8. Raises DataError naming the line that is not, MissingFile."""
    data = read_bytes(path, error=DataError, limit=MAX_BYTES)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line}: it is not UTF-8; save the file as UTF-8") from None
