"""The rows of a file of prompts: one JSON object a line, valid or not, or plain text. Knows lines and seeds, no model.

A row is {"prompt": "今天", "id": "a-17", "seed": 5}; id and seed may be left out, other keys are not read. In plain
text each line is a prompt: a file is plain if its first row does not begin with "{", but for .jsonl, .ndjson and .json.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from reprlib import repr as short
from typing import NoReturn

from hanmo.errors import DataError
from hanmo.files import open_file

LONGEST = 4 << 20  # bytes of a line; a file without line ends must not be held as one


@dataclass(frozen=True)
class Row:
    """One line that is not blank.

    number: of the line, from 1.   end: bytes of the file up to the next line.   error: why it is no valid row.
    """

    number: int
    end: int
    id: str | int | None = None
    prompt: str = ""
    seed: int | None = None
    error: str | None = None


def read_rows(path: Path, *, start: int = 0, number: int = 0) -> Iterator[Row]:
    """Read the rows after the first `start` bytes, which hold `number` lines."""
    _, _, first = next(read_lines(path), (0, 0, b"{"))
    is_json = path.suffix.lower() in (".jsonl", ".ndjson", ".json")
    plain = not is_json and not first.removeprefix(BOM_UTF8).lstrip().startswith(b"{")
    for place, end, line in read_lines(path, start=start, number=number):
        yield _row(line, place, end, plain)


def read_lines(path: Path, *, start: int = 0, number: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Read (number, end, bytes) of each line that is not blank; of one that is too long, more than LONGEST bytes."""
    with open_file(path, error=DataError) as file:
        file.seek(start)
        while line := file.readline(LONGEST + 1):
            rest = line
            while len(rest) > LONGEST and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST + 1)
            number += 1
            if line.strip() or len(line) > LONGEST:
                yield number, file.tell(), line


def row_seed(seed: int, number: int) -> int:
    """Derive the seed of a row without one from the run's seed and the row's number alone."""
    return int.from_bytes(blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), "big")


def _row(line: bytes, number: int, end: int, plain: bool) -> Row:
    if len(line) > LONGEST:
        return Row(number, end, error=f"the line is longer than {LONGEST:,} bytes; is there one row a line?")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if plain:
            return Row(number, end, prompt=text.rstrip("\r\n"))
        record = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return Row(number, end, error=f"the line is not UTF-8: {error.reason} at byte {error.start}; convert the file")
    except json.JSONDecodeError as error:
        return Row(number, end, error=f"the line is not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        return Row(number, end, error=f"the line is not JSON that can be read: {error}")
    if not isinstance(record, dict):
        return Row(number, end, error=f'the line is {short(record)}; expected an object, {{"prompt": "…"}}')
    id, prompt, seed = (record.get(name) for name in ("id", "prompt", "seed"))
    if not isinstance(id, str | int | None):
        return Row(number, end, error=f"the id is {short(id)}; expected a text or a whole number")
    if "prompt" not in record:
        return Row(number, end, id, error=f'there is no "prompt"; the keys are {short(list(record))}')
    if not isinstance(prompt, str):
        return Row(number, end, id, error=f"the prompt is {short(prompt)}; expected a text")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        return Row(number, end, id, error=f"seed is {short(seed)}; expected a whole number from 0 to 2**64 - 1")
    return Row(number, end, id, prompt, seed)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
