"""Data rows of tasks: JSON lines with the place of each, duplicates, and splits that keep duplicates together.

Spans are half-open and count code points of the row's text: text[start:stop]. Knows no tokenizer and no kind of task.

    {"text", "label" | "labels" | "score"}        {"a", "b", "label" | "score"}
    {"text", "spans": [{"start", "stop", "label"}]}
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hanmo.errors import DataError
from hanmo.files import open_file, parse_json
from hanmo.tokenizers.protocol import check_text

_KINDS = {str: "a string", list: "a list", dict: "an object", int: "a number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Row:
    """One row of data and its place, "train.jsonl:12", for messages."""

    where: str
    data: Mapping[str, Any]

    def error(self, message: str) -> DataError:
        """Return the error that names this row."""
        return DataError(f"{self.where}: {message}")

    def get(self, key: str, kind: type | tuple[type, ...], *, default: Any = None) -> Any:
        """Return a value of the row. Raises DataError if it is missing, without a default, or of another type."""
        value = self.data.get(key, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(dict.fromkeys(_KINDS[each] for each in kinds))
            found = f"is {repr(value)[:100]}" if key in self.data else "is missing"
            raise self.error(f"{key!r} {found}; expected {names}")
        return value


Item: TypeAlias = str | tuple[str, str] | Mapping[str, Any] | Row
Key: TypeAlias = Callable[[Row], tuple[str, ...]]


def texts_of(row: Row, keys: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the row's text, or its two texts "a" and "b"; or those of some keys.

    Raises DataError if one is missing or empty.
    """
    keys = keys or (("a", "b") if "a" in row.data and "text" not in row.data else ("text",))
    texts = tuple(row.get(key, str) for key in keys)
    for key, text in zip(keys, texts, strict=True):
        if not text.strip():
            raise row.error(f"{key!r} is empty; expected a text")
        check_text(text, name=f"{key!r} of {row.where}")
    return texts


def spans_of(row: Row, key: str = "spans") -> list[tuple[int, int, str]]:
    """Return the row's spans as (start, stop, label), checked against its text.

    A span may carry its own "text", which must then be the text between its ends.
    Raises DataError for a span outside the text, one that is empty, and one whose text is another.
    """
    text, found = row.get("text", str), []
    for span in row.get(key, list, default=[]):
        if not isinstance(span, Mapping) or not {"start", "stop", "label"} <= set(span):
            raise row.error(f'{key!r} holds {str(span)[:100]}; expected {{"start", "stop", "label"}}')
        start, stop, label = span["start"], span["stop"], span["label"]
        if type(start) is not int or type(stop) is not int or not isinstance(label, str):
            raise row.error(f"the span {str(span)[:100]} needs whole numbers as start and stop, and a string as label")
        if not 0 <= start < stop <= len(text):
            inclusive = "; are its ends inclusive? stop is one past the last character" if start == stop else ""
            raise row.error(f"the span {start}:{stop} is not in the text of {len(text)} characters{inclusive}")
        said = span.get("text")
        if said is not None and said != text[start:stop]:
            raise row.error(
                f"the span {start}:{stop} is {text[start:stop]!r}, but its text says {said!r}{_hint(text, span)}"
            )
        found.append((start, stop, label))
    return found


def _hint(text: str, span: Mapping[str, Any]) -> str:
    if text[span["start"] : span["stop"] + 1] == span["text"]:
        return "; its end is inclusive, expected one past the last character"
    if utf16_part(text, span["start"], span["stop"]) == span["text"]:
        return "; its ends count UTF-16 units, expected code points"
    place = text.find(span["text"]) if isinstance(span["text"], str) and span["text"] else -1
    return f"; that text begins at {place}" if place >= 0 else ""


def utf16_part(text: str, start: int, stop: int) -> str:
    """Return the part of a text between two places that count UTF-16 units, as JavaScript does."""
    return text.encode("utf-16-le", "surrogatepass")[2 * start : 2 * stop].decode("utf-16-le", "replace")


def read_rows(source: str | Path | Iterable[Row | Mapping[str, Any]]) -> list[Row]:
    """Read a file of JSON lines, or take rows that are in memory.

    Raises DataError naming the line for what is no JSON object, and for a source without rows; MissingFile.
    """
    if isinstance(source, str | Path):
        rows, name = list(_lines(Path(source))), str(source)
    else:
        rows, name = [], "the list of rows"
        for number, data in enumerate(source, 1):
            row = data if isinstance(data, Row) else Row(f"row {number}", data)
            if not isinstance(row.data, Mapping):
                raise row.error(f"it is a {type(row.data).__name__}; expected a dict")
            rows.append(row)
    if not rows:
        raise DataError(f"{name} is empty; expected a JSON object on each line")
    return rows


def _lines(path: Path) -> Iterator[Row]:
    with open_file(path, error=DataError) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path.name}:{number}"
                yield Row(where, parse_json(line, where, error=DataError, unique=True))


def as_rows(items: Iterable[Item]) -> Iterator[Row]:
    """Yield rows of texts, of pairs of texts and of dicts. Raises DataError naming the item that is none of these."""
    for number, item in enumerate(items, 1):
        where = f"text {number}"
        if isinstance(item, str):
            yield Row(where, {"text": item})
        elif isinstance(item, Row):
            yield item
        elif isinstance(item, Mapping):
            yield Row(where, item)
        elif isinstance(item, Sequence) and len(item) == 2:
            yield Row(where, {"a": item[0], "b": item[1]})
        else:
            raise DataError(f"{where} is a {type(item).__name__}; expected a text, a pair of texts or a dict")


def count_duplicates(rows: Sequence[Row], others: Sequence[Row] | None = None, *, key: Key = texts_of) -> int:
    """Count the rows whose texts occurred in an earlier row or, if `others` are given, occur in one of these."""
    if others is not None:
        seen = {_unordered(key(row)) for row in others}
        return sum(_unordered(key(row)) in seen for row in rows)
    return len(rows) - len({_unordered(key(row)) for row in rows})


def split(
    rows: Sequence[Row],
    share: float,
    *,
    key: Key = texts_of,
    labels: Callable[[Row], Iterable[str]] = lambda row: (),
    seed: int = 0,
) -> tuple[list[Row], list[Row]]:
    """Hold out a share of the rows, drawn by the seed; rows of equal texts, or `key`, stay on one side.

    labels: of a row; the last rows of a label are held out only where there are too few others.
    Raises DataError if one side would be empty, or the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise DataError(f"the share held out is {share}; expected a number between 0 and 1")
    order = _rare_last(_groups(rows, key, seed), [set(labels(row)) for row in rows])
    held: set[int] = set()
    for group in order[:-1]:
        if len(held) >= max(1, round(share * len(rows))):
            break
        held.update(group)
    if not held:
        raise DataError(f"{len(rows)} rows with {len(order)} different texts are too few to hold {share:.0%} out")
    left = [row for number, row in enumerate(rows) if number not in held]
    return left, [row for number, row in enumerate(rows) if number in held]


def folds(
    rows: Sequence[Row], count: int, *, key: Key = texts_of, seed: int = 0
) -> Iterator[tuple[list[Row], list[Row]]]:
    """Yield the training and dev rows of each fold; each row is in one dev side, rows of equal texts in the same.

    Raises DataError if there are fewer than 2 folds, or fewer different texts than folds.
    """
    order = _groups(rows, key, seed)
    if not 2 <= count <= len(order):
        raise DataError(f"{count} folds of {len(order)} different texts; expected from 2 to the number of texts")
    parts: list[set[int]] = [set() for _ in range(count)]
    for group in order:
        min(parts, key=len).update(group)
    for part in parts:
        left = [row for number, row in enumerate(rows) if number not in part]
        yield left, [row for number, row in enumerate(rows) if number in part]


def _groups(rows: Sequence[Row], key: Key, seed: int) -> list[list[int]]:
    """Return the numbers of rows of equal keys together, the groups in an order drawn by the seed."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(_unordered(key(row)), []).append(number)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    return order


def _unordered(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is equal for the pairs (a, b) and (b, a)."""
    return tuple(sorted(texts))


def _rare_last(groups: Sequence[list[int]], labels: Sequence[set[str]]) -> list[list[int]]:
    """Put groups last without which, and without those before them, no row of some label would be left."""
    left, free, needed = Counter(label for some in labels for label in some), [], []
    for group in groups:
        own = Counter(label for number in group for label in labels[number])
        if any(left[label] <= count for label, count in own.items()):
            needed.append(group)
        else:
            free.append(group)
            left.subtract(own)
    return free + needed
