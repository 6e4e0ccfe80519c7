"""What people see: lines whose control characters are escaped; messages and progress bars on standard error."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hanmo.cli.chinese import translate

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["echo", "on_screen", "printable", "progress", "say", "translating_console"]

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


def say(message: str) -> None:
    """Print one line on standard error, after the program's name, in the user's language."""
    print(f"hanmo: {printable(translate(message))}", file=sys.stderr, flush=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error while the block runs; gives a function of (bytes done, bytes in all).

    Shows nothing where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(translate(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def translating_console(*, quiet: bool = False) -> "Console":
    """Make a console on standard error that prints lines in the user's language."""
    from rich.console import Console

    class Translating(Console):
        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*(translate(each) if isinstance(each, str) else each for each in objects), **how)

    return Translating(stderr=True, quiet=quiet)
