"""What is typed for `hanmo task`: texts and rows, NAME=VALUE settings, training tricks. Knows no commands."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanmo.errors import ConfigError, DataError
from hanmo.files import parse_json

if TYPE_CHECKING:
    from hanmo.tasks.rows import Row
    from hanmo.tasks.steps import StepWrapper


def read_inputs(path: Path | None, format: str | None) -> "list[Row]":
    """Read what is to be predicted: labelled data's formats, or lines of texts and JSON objects.

    format: as for `read_data`; None is a table for .tsv and .csv whose first line names the columns, else lines.
    """
    from hanmo.tasks.readers import has_header, read_data

    if path is not None and format is None and path.suffix in (".tsv", ".csv") and has_header(path):
        format = "table"
    return list(read_rows(read_lines(path))) if path is None or format is None else read_data(path, format=format)


def read_lines(path: Path | None) -> "Iterator[tuple[str, str]]":
    """Yield the lines of a file, or of standard input, that are not empty, each after its place."""
    from hanmo.tasks.readers import read_text

    name = "standard input" if path is None else path.name
    text = sys.stdin.read() if path is None else read_text(path)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}:{number}", line.rstrip("\r")


def read_rows(lines: "Iterable[tuple[str, str]]") -> "Iterator[Row]":
    """Yield a row of each text and of each JSON object."""
    from hanmo.tasks.rows import Row

    for where, line in lines:
        if line.lstrip().startswith("{"):
            yield Row(where, parse_json(line, where, error=DataError, unique=True))
        else:
            yield Row(where, {"text": line})


def read_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value that is JSON becomes what it says."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ConfigError(f"the setting {pair!r} has no value; expected NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def read_wrapper(text: str) -> "StepWrapper":
    """Make a step wrapper of NAME, or NAME:OPTION=VALUE with commas between several options."""
    from hanmo.tasks.wrappers import make_wrapper

    name, _, options = text.partition(":")
    return make_wrapper(name, **read_settings(options.split(",") if options else []))
