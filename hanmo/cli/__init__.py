"""The command line. Importing it is cheap: every command imports what it needs when it runs."""

import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line on the program's arguments and exit; the entry point of `hanmo`."""
    # Read when torch is imported: OpenMP's threads sleep while they wait for each other. By default they spin, and keep
    # the thread that they wait for from running where other programs want the processor too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from hanmo.cli.app import run

        run()
    except KeyboardInterrupt:  # while it was still starting; later the commands see to it
        sys.exit(130)
