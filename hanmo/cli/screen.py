"""What people see: lines whose control characters are escaped; messages and progress bars on standard error."""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from hanmo.cli.chinese import translate

if TYPE_CHECKING:
    from rich.console import Console

# Controls but tab and newline, and those that turn the direction of text: names in a file may hold what terminals obey.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Escape control characters as JSON does, in JSON and elsewhere."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def on_screen(text: str) -> str:
    """Escape control characters in what a model wrote if a terminal shows it; files and pipes get it as it is."""
    return printable(text) if sys.stdout.isatty() else text


def echo(text: str) -> None:
    """Print a result on standard output, its control characters escaped."""
    print(printable(text))


def echo_json(value: object) -> None:
    """Print a result as JSON on standard output."""
    echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(message: str) -> None:
    """Print one line on standard error, after the program's name, in the user's language."""
    print(f"hanmo: {printable(translate(message))}", file=sys.stderr, flush=True)


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Format rows as lines of aligned columns; the last cell of a row with fewer cells may be of any length.

    right: the columns that are aligned on the right.
    """
    size = max(map(len, rows))
    counted = [row if len(row) == size else row[:-1] for row in rows]
    widths = [max(len(row[place]) for row in counted if place < len(row)) for place in range(size)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if at in right else '<'}{widths[at]}}" for at, cell in enumerate(row)).rstrip()
        for row in rows
    )


@contextmanager
def bar(title: str, *columns: str, completed: int = 0, **options: Any) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error while the block runs, if that is a terminal.

    columns: names of rich.progress's columns after the bar.   options: of rich's Progress.
    Gives a function of (done, total) that also takes a new title; None leaves a value as it is.
    """
    if not sys.stderr.isatty():
        yield lambda done=None, total=None, title=None: None
        return
    from rich import progress as rich
    from rich.console import Console

    shown = [rich.TextColumn("{task.description}"), rich.BarColumn(), *(getattr(rich, name)() for name in columns)]
    with rich.Progress(*shown, console=Console(stderr=True), transient=True, **options) as made:
        task, refresh = made.add_task(translate(title), total=None, completed=completed), not made.live.auto_refresh

        def show(done: int | None = None, total: int | None = None, title: str | None = None) -> None:
            description = None if title is None else translate(title)
            made.update(task, completed=done, total=total, description=description, refresh=refresh)

        yield show


def progress(title: str) -> AbstractContextManager[Callable[..., None]]:
    """Show a bar over bytes; gives a function of (bytes done, bytes in all)."""
    return bar(title, "DownloadColumn", "TransferSpeedColumn", "TimeRemainingColumn")


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over bytes; gives a function to call with the bytes of each part."""
    done = 0
    with progress(title) as show:

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            show(done, total)

        yield count


def translating_console(*, quiet: bool = False) -> "Console":
    """Make a console on standard error that prints lines in the user's language."""
    from rich.console import Console

    class Translating(Console):
        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*(translate(each) if isinstance(each, str) else each for each in objects), **how)

    return Translating(stderr=True, quiet=quiet)
