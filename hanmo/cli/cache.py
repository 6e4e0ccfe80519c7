"""`hanmo cache`: list or delete what was converted and compiled for the CPU and kept, or compile it ahead."""

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import BadParameter, Option

from hanmo.cli import options as shared
from hanmo.cli.screen import bar, echo, echo_json, say
from hanmo.files import cache_folder
from hanmo.kernels import cache as compiled


def cache(
    cache_dir: Annotated[Path | None, Option(help="The folder, if not the platform's.", show_default=False)] = None,
    warm: Annotated[bool, Option("--warm", help="Compile all kernels for this processor now.")] = False,
    clear: Annotated[bool, Option("--clear", help="Delete all of them.")] = False,
    as_json: shared.Json = False,
) -> None:
    """List the weights and kernels that were made for the CPU, or delete them: they are made again when needed.

    [bold]hanmo cache[/bold]

    [bold]hanmo cache --warm[/bold]

    [bold]hanmo cache --clear[/bold]
    """
    from hanmo.inference import store

    if warm and (clear or cache_dir is not None):
        raise BadParameter("--warm compiles for all commands; give it without --clear and --cache-dir")
    if warm:
        _warm()
        return
    place = cache_dir or cache_folder()
    built, kernels = store.entries(place), compiled.entries(cache_dir)
    plural = "" if len(built) == 1 else "s"
    if clear:
        say(f"deleted {len(built)} file{plural} of {store.clear(place):,} bytes from {place}")
        if freed := compiled.clear(cache_dir):
            say(f"deleted compiled kernels of {freed:,} bytes")
    elif as_json:
        rows = [{"path": str(b.path), "bytes": b.nbytes, "finished": b.finished, **b.words} for b in built]
        rows += [
            {"path": str(each.path), "bytes": each.nbytes, "kernel": each.kernel, "processor": each.processor}
            for each in kernels
        ]
        echo_json(rows)
    else:
        for each in built:
            what = f"{each.words.get('weights', ''):<9}" if each.finished else "unfinished"
            echo(f"{each.nbytes:>15,}  {what:<10}  {each.words.get('source', '-')}  {each.path}")
        for kernel in kernels:
            echo(f"{kernel.nbytes:>15,}  compiled    {kernel.kernel} for {kernel.processor}  {kernel.path}")
        say(f"{place} holds {len(built)} file{plural} of {sum(each.nbytes for each in built):,} bytes")


def _warm() -> None:
    """Compile the kernels, or read those that were compiled before, and say for which processor."""
    from hanmo.inference.fused.support import KERNELS, kernels, processor
    from hanmo.training.optim.adafactor_on_cpu import loops

    made = {name: partial(kernels, name) for name in KERNELS} | {"adafactor": loops}
    with bar("compiling", "MofNCompleteColumn", "TimeElapsedColumn") as show:
        found = []
        for done, (name, load) in enumerate(made.items()):
            show(done, len(made))
            found += [name] if load() is not None else []
    if found:
        say(f"compiled for {processor()}: {', '.join(found)}")
    else:
        say("this machine has no fused steps: they need an x86 processor with AVX2, Linux or macOS, and Numba")
