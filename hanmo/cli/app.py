"""The commands by name, and what happens when one fails: one line on stderr and an exit code.

Exit codes: 0 done, 1 an error of Hanmo or the system, 2 wrong usage, 130 Ctrl-C, 141 broken pipe, 143 SIGTERM.
"""

import logging
import os
import re
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer import Option
from typer.core import TyperGroup

from hanmo import __version__
from hanmo.cli.bench import bench
from hanmo.cli.cache import cache
from hanmo.cli.chinese import Translated, TranslatedCommand, errors_translated, translate
from hanmo.cli.convert import convert
from hanmo.cli.inspect import inspect
from hanmo.cli.pack import pack, vocab
from hanmo.cli.plan import plan
from hanmo.cli.run import CONTEXT
from hanmo.cli.run import run as run_script
from hanmo.cli.screen import say
from hanmo.cli.serve import serve
from hanmo.cli.task import evaluate, explain, export, fit, predict
from hanmo.cli.train import finetune, pretrain
from hanmo.cli.write import write
from hanmo.errors import HanmoError


class _Said(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record).removeprefix("hanmo: "))


_SAID = _Said()


class _Commands(Translated, TyperGroup):
    """Prints errors that a user can act on as one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with errors_translated():
                result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _end("interrupted", 130)
        except BrokenPipeError:
            _end("", 141)
        except (HanmoError, OSError) as error:
            if ctx.find_root().params.get("debug"):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, OSError) and not isinstance(error, HanmoError) and error.strerror:
                named = isinstance(error.filename, (str, bytes, os.PathLike))
                message = f"{error.strerror}: {os.fsdecode(error.filename)}" if named else error.strerror
            _end(_as_options(translate(message), self.commands.get(ctx.invoked_subcommand or "")), 1)
        return result


app = typer.Typer(
    name="hanmo",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hanmo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error, not only its message.")] = False,
) -> None:
    """Chinese Transformer language models, from the original checkpoints.

    Results go to standard output, everything else to standard error.
    """
    logging.getLogger("hanmo").addHandler(_SAID)
    logging.getLogger("hanmo").setLevel(logging.INFO)


for _command in (write, serve, inspect, convert, plan, cache, bench, finetune, pretrain, pack, vocab):
    app.command(_command.__name__, cls=TranslatedCommand)(_command)
app.command("run", cls=TranslatedCommand, context_settings=CONTEXT)(run_script)
task = typer.Typer(cls=_Commands, no_args_is_help=True)
task.command("fit", cls=TranslatedCommand)(fit)
task.command("predict", cls=TranslatedCommand)(predict)
task.command("evaluate", cls=TranslatedCommand)(evaluate)
task.command("explain", cls=TranslatedCommand)(explain)
task.command("export", cls=TranslatedCommand)(export)
app.add_typer(task, name="task", help="Classify, tag, extract and compare texts: train on labelled data, and predict.")


def run() -> NoReturn:
    """Run the command line on the program's arguments and exit."""
    # SIGTERM exits by an exception, so that partial files are removed; the default would end the process at once.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        # Paths and tensor names may hold characters that the terminal's encoding has not.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    app(prog_name="hanmo")
    sys.exit(0)


def _end(message: str, code: int) -> NoReturn:
    if message:
        say(message)
    try:
        sys.stdout.flush()
    except OSError:  # broken pipe or full disk: discard the buffer, which would be flushed again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _as_options(message: str, command: Any) -> str:
    """Spell the arguments that a message of the library names as the options of the command that was given.

    `keep_last=True` becomes --keep-last, `tokenizer=PATH` --tokenizer PATH. Without "=" a name is an argument if it
    holds an underscore, begins a clause before "is" or "was", or is in "leave NAME out".
    """
    options = {each.name: each for each in getattr(command, "params", ()) if each.opts[0].startswith("-")}
    message = re.sub(  # an alternative that the command does not have
        r"(, or give |，或用 )([a-z_]+)=\S+( to load it| 指定)?", lambda m: m[0] if m[2] in options else "", message
    )

    def spell(match: re.Match[str]) -> str:
        name, value = match.groups()
        before, after = message[: match.start()], message[match.end() :]
        clause = before[-2:] in ("", "; ", ", ", ": ") and after.startswith((" is ", " was "))
        left_out = before.endswith("leave ") and after.startswith(" out")
        if name not in options or not (value or "_" in name or clause or left_out):
            return match[0]
        if value == "False" and options[name].secondary_opts:
            return str(options[name].secondary_opts[0])
        return str(options[name].opts[0]) + ("" if value in (None, "True") else f" {value.strip(chr(39))}")

    return re.sub(r"(?<![\w./-])([a-z_]+)(?:=('[^']*'|[\w.-]*\w))?(?![\w/])", spell, message)
