"""What a run tells: a JSON-lines file for programs, a live line or plain lines for people.

Knows records, dicts of numbers that carry a "step". Knows no model.
"""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import CorruptFile
from hanmo.files import parse_json, read_bytes

__all__ = ["Log", "read_log"]


class Log:
    """OUT/log.jsonl and the screen; used in a `with` block.

    path: None writes no file.
    after: step whose later records are dropped first, when a run is resumed there; None begins the file anew.
    evaluated: last step evaluated then; an evaluation at `after` comes again if it is not this one.
    console: where people look; None shows nothing.   every: seconds between plain lines where there is no terminal.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        after: int | None = None,
        evaluated: int = -1,
        console: Console | None = None,
        every: float = 10,
    ) -> None:
        self._file: TextIO | None = None
        if path is not None:
            kept = _before(path, after, evaluated) if after is not None and path.is_file() else []
            with atomic_path(path) as made:
                made.write_text("".join(kept), "utf-8")
            self._file = path.open("a", encoding="utf-8")
        self._console, self._every, self._shown = console, every, float("-inf")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Log":
        if self._console is not None and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to the file; it is on its way to the disk when this returns."""
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()

    def progress(self, line: str, *, step: int, total: int | None) -> None:
        """Show where the run is: a bar on a terminal, else a line every few seconds."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, total=total, description=line)
        elif time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self.say(line)

    def say(self, text: str) -> None:
        """Show a text that stays."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log.jsonl; a last line without its end was being written, and is left out.

    Raises CorruptFile naming the line that is no record.
    """
    records = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        record = parse_json(line, f"{path} line {number}", advice="; remove that line")
        if type(record.get("step")) is not int or not isinstance(record.get("evaluation", {}), dict):
            raise CorruptFile(f"{path} line {number} is no record of a step; remove that line")
        records.append(record)
    return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _before(path: Path, after: int, evaluated: int) -> list[str]:
    """Read the lines that a run which goes on after a step will not write again."""
    kept = []
    for record in read_log(path):
        again = "evaluation" in record and (record.get("averaged") or evaluated != after)
        if record["step"] < after or (record["step"] == after and not again):
            kept.append(_line(record))
    return kept
