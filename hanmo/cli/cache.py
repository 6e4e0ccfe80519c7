"""`hanmo cache`: what the engine for the CPU has built and kept, and how to be rid of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hanmo.cli.screen import echo, say

__all__ = ["cache"]


def cache(
    folder: Annotated[
        Path | None, typer.Option("--cache-dir", help="The folder, if not the platform's.", show_default=False)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all that was built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the weights that were converted for the CPU, or delete them: they are made again when they are needed.

    [bold]hanmo cache[/bold]

    [bold]hanmo cache --clear[/bold]
    """
    from hanmo.inference import store

    place = folder or store.default_folder()
    if clear:
        count = len(store.entries(place))
        freed = store.clear(place)
        say(f"deleted {count} file{'' if count == 1 else 's'} of {freed:,} bytes from {place}")
        return
    built = store.entries(place)
    if as_json:
        rows = [{"path": str(b.path), "bytes": b.nbytes, "finished": b.finished, **b.words} for b in built]
        echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for each in built:
        what = f"{each.words.get('weights', ''):<9}" if each.finished else "unfinished"
        echo(f"{each.nbytes:>15,}  {what:<10}  {each.words.get('source', '-')}  {each.path}")
    total = sum(each.nbytes for each in built)
    say(f"{place} holds {len(built)} file{'' if len(built) == 1 else 's'} of {total:,} bytes")
