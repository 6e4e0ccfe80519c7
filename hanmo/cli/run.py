"""`hanmo run`: run a script written for bert4keras, or list what Hanmo supports of it. Knows options and exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from hanmo.cli import options as shared
from hanmo.cli.chinese import translate
from hanmo.cli.screen import echo, say
from hanmo.cores import set_torch_threads

CONTEXT = {"allow_interspersed_args": False}  # options after SCRIPT are the script's
_KERAS = "Build models with Keras; by default where the script needs it."
_CHECK = "Do not run it; list what it uses; exit with 1 if some is not supported."


def run(
    context: typer.Context,
    script: Annotated[Path, Argument(metavar="SCRIPT", help="A Python file.", show_default=False)],
    arguments: Annotated[
        list[str] | None, Argument(metavar="ARGS", help="Arguments of the script.", show_default=False)
    ] = None,
    check: Annotated[bool, Option("--check", help=_CHECK)] = False,
    keras: Annotated[bool | None, Option("--keras/--no-keras", help=_KERAS, show_default=False)] = None,
    weights: shared.Weights = None,
    threads: shared.Threads = None,
) -> None:
    """Run a script that was written for bert4keras, unchanged but for its paths.

    Its `import bert4keras` and `import keras` are served by Hanmo, even where those are installed.
    A script that trains, or builds on models, needs Keras 3: pip install 'hanmo[keras]'.
    Options come before SCRIPT; what follows it is the script's.

    For example:

      hanmo run basic_language_model_gpt2_ml.py

      hanmo run --weights int8 --threads 4 write.py 今天天气不错

      hanmo run --check task_seq2seq.py
    """
    if check:
        from hanmo.compat.bert4keras._script import check_script

        findings = check_script(script, keras=keras)
        for each in findings:
            echo(f"{script}:{each.line}: {'' if each.supported else 'not supported: '}{each.text}")
        wrong = sum(not each.supported for each in findings)
        say(f"{len(findings) - wrong} supported, {wrong} not" if findings else f"{script} uses nothing of bert4keras")
        raise typer.Exit(int(wrong > 0))
    from hanmo.compat.bert4keras import backend
    from hanmo.compat.bert4keras._script import frames_of, line_of, own_error, run_script

    backend.set_weights_dtype(weights)
    if threads is not None:
        set_torch_threads(threads)
    try:
        run_script(script, arguments or [], keras=keras)
    except BrokenPipeError:
        raise
    except Exception as error:  # the script's own, whatever it is: shown as Python shows it, without our frames
        trace = frames_of(script, error.__traceback__)
        own = own_error(error)
        if own is not None and not context.find_root().params.get("debug"):
            line = line_of(script, trace)
            say(("" if line is None else f"{script}:{line}: ") + translate(" ".join(str(own).split())))
        else:
            sys.excepthook(type(error), error.with_traceback(trace), trace)
        raise typer.Exit(1) from None
