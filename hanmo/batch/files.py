"""The files of a run: its results, its settings, and from which row it resumes. Knows no model.

    results.jsonl           a line for each row that succeeded, in the order of the rows
    results.errors.jsonl    a line for each row that failed
    results.jsonl.run       the prompts' size and digest, the settings and the seed of the run

Every row is in one of the first two, and its line is written before that of the next row, so a process that is killed
leaves at most one incomplete line, the last.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from hanmo.batch.rows import read_lines
from hanmo.batch.work import Line
from hanmo.checkpoint.staged import atomic_path, exclusive
from hanmo.errors import ConfigError, DataError, MissingFile
from hanmo.files import open_file, read_json
from hanmo.generate.draw import check_seed, fresh_seed


class Run:
    """A new or resumed run over a file of prompts; a context manager, as it holds files open.

    seed: None takes the seed that the run was started with, or a fresh one.
    settings: all that the results depend on, as JSON types.
    start, number: the bytes and lines of the prompts that are done.   rows, bad: done rows, and those of them that
    failed.   size: bytes of the prompts.   finished: whether every row is done.
    Raises MissingFile if there are no prompts; ConfigError for other settings than the run was started with; DataError
    for prompts without rows, for files that are not this run's, and while another process writes them.
    """

    def __init__(self, prompts: Path, out: Path, *, settings: Mapping[str, Any], seed: int | None = None) -> None:
        if not prompts.is_file():
            raise MissingFile(f"there is no file of prompts at {prompts}; give one with a prompt in each line")
        self.prompts, self.out = prompts, out
        self.errors = out.with_name(f"{out.stem}.errors{out.suffix}")
        self.record = out.with_name(f"{out.name}.run")
        if prompts.resolve() in (out.resolve(), self.errors.resolve(), self.record.resolve()):
            raise ConfigError(f"the results would replace the prompts, {prompts}; give another file for them")
        if seed is not None:
            check_seed(seed)
        self.start = self.number = self.rows = 0
        self.size, digest = prompts.stat().st_size, hashlib.sha256()
        with open_file(prompts, error=DataError) as file:
            for block in iter(partial(file.read, 1 << 20), b""):
                digest.update(block)
        facts = {"bytes": self.size, "sha256": digest.hexdigest()}
        what = json.loads(json.dumps({"format": 1, "prompts": facts, "settings": dict(settings)}))
        self._files: list[_File] = []
        self._lock = ExitStack()
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(exclusive(out.with_name(f".{out.name}.lock"), out))
            for path in (out, self.errors):
                self._files.append(_File(path))
            begun = any(file.head is not None for file in self._files)
            self.seed = self._same(what, seed) if begun else fresh_seed() if seed is None else seed
            self._resume()
        except BaseException:
            self.close()
            raise
        self._record: dict[str, Any] | None = None if self.rows else what | {"seed": self.seed}

    @property
    def bad(self) -> int:
        """Number of rows that failed."""
        return self._files[1].lines

    def append(self, lines: Sequence[Line]) -> None:
        """Append the results of the next rows. Raises OSError, naming the file, if writing fails."""
        if self._record is not None:
            with atomic_path(self.record) as path:
                path.write_text(json.dumps(self._record, ensure_ascii=False, indent=2) + "\n", "utf-8")
            self._record = None
        for good, group in groupby(lines, lambda line: line.good):
            part = list(group)
            self._files[not good].append("".join(line.text for line in part), len(part))
            self.start, self.number, self.rows = part[-1].end, part[-1].number, self.rows + len(part)

    def window(self, size: int) -> tuple[int, int]:
        """Return the bytes and lines before the window of the next row; `size` rows of the file are a window."""
        place = 0, 0
        for number, end, _ in islice(read_lines(self.prompts), self.rows // size * size):
            place = end, number
        return place

    def close(self) -> None:
        """Close the files, and remove empty ones."""
        with self._lock:
            for file in self._files:
                file.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _same(self, what: dict[str, Any], seed: int | None) -> int:
        """Check that the run was started with these settings, and return its seed."""
        try:
            begun = read_json(self.record, error=DataError)
            old, new, old_seed = dict(begun["settings"]), what["settings"], begun["seed"]
            check_seed(old_seed)
        except (OSError, ValueError, TypeError, KeyError):
            raise DataError(
                f"{self.out} is not empty, and there is no {self.record.name} beside it that says which run wrote it; "
                "give another file for the results, or move that one away"
            ) from None
        if begun.get("prompts") != what["prompts"] or begun.get("format") != what["format"]:
            raise ConfigError(
                f"{self.out} was started with other prompts than {self.prompts} holds now; give the same prompts to "
                "continue, or another file for the results"
            )
        if seed is not None:
            old, new = {**old, "seed": old_seed}, {**new, "seed": seed}
        names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if names:
            told = "; ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names)
            raise ConfigError(
                f"{self.out} was started with other settings: {told}; give the same settings to continue, or another "
                "file for the results"
            )
        return old_seed

    def _resume(self) -> None:
        """Find the first row that is not done."""
        self.finished = True
        for number, end, _ in read_lines(self.prompts):
            file = next((file for file in self._files if file.head == number), None)
            if file is None:
                self.finished = False
                break
            file.advance()
            self.start, self.number, self.rows = end, number, self.rows + 1
        for file in self._files:
            if file.head is not None:
                raise DataError(
                    f"line {file.lines + 1} of {file.path} does not continue this run; remove it and all lines after "
                    "it to continue, or give another file for the results"
                )
        if self.finished and not self.rows:
            raise DataError(f'{self.prompts} holds no rows; expected lines such as 今天 or {{"prompt": "今天"}}')


class _File:
    """A file of lines: those of earlier processes are read first, then new ones are appended.

    lines: read or appended so far.   head: the row of the next line to read; None at the end, which is before an
    incomplete last line; 0 for a line that no run wrote.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give a file for the results")
        self.path, self.lines, self._end = path, 0, 0
        self._file = path.open("ab+", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size  # 0 for a device, which is not read
        self._heads = self._read() if self._size else iter(())
        self.head = next(self._heads, None)

    def advance(self) -> None:
        """Go to the next line."""
        self.lines += 1
        self.head = next(self._heads, None)

    def append(self, text: str, lines: int) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))  # half a character in an id: as JSON escapes it
        try:
            if self._size > self._end:
                self._file.truncate(self._end)
                self._size = self._end
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.lines += lines

    def close(self) -> None:
        status = os.lstat(self.path)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:  # as a run that was killed leaves it too
            self.path.unlink()
        self._file.close()

    def _read(self) -> Iterator[int]:
        with self.path.open("rb") as reader:
            for line in reader:
                if not line.endswith(b"\n"):
                    return
                self._end += len(line)
                found = re.match(rb'\{"row": ([0-9]+), ', line)
                yield int(found[1]) if found else 0
