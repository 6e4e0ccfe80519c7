"""`hanmo cache`: list or delete the weights that the CPU engine has converted and kept."""

from pathlib import Path
from typing import Annotated

from typer import Option

from hanmo.cli import options as shared
from hanmo.cli.screen import echo, echo_json, say


def cache(
    cache_dir: Annotated[Path | None, Option(help="The folder, if not the platform's.", show_default=False)] = None,
    clear: Annotated[bool, Option("--clear", help="Delete all of them.")] = False,
    as_json: shared.Json = False,
) -> None:
    """List the weights that were converted for the CPU, or delete them: they are converted again when needed.

    [bold]hanmo cache[/bold]

    [bold]hanmo cache --clear[/bold]
    """
    from hanmo.inference import store

    place = cache_dir or store.default_folder()
    built = store.entries(place)
    plural = "" if len(built) == 1 else "s"
    if clear:
        say(f"deleted {len(built)} file{plural} of {store.clear(place):,} bytes from {place}")
    elif as_json:
        rows = [{"path": str(b.path), "bytes": b.nbytes, "finished": b.finished, **b.words} for b in built]
        echo_json(rows)
    else:
        for each in built:
            what = f"{each.words.get('weights', ''):<9}" if each.finished else "unfinished"
            echo(f"{each.nbytes:>15,}  {what:<10}  {each.words.get('source', '-')}  {each.path}")
        say(f"{place} holds {len(built)} file{plural} of {sum(each.nbytes for each in built):,} bytes")
