"""The command line. Importing it is cheap: every command imports what it needs when it runs."""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line on the program's arguments and exit; the entry point of `hanmo`."""
    try:
        from hanmo.cli.app import run

        run()
    except KeyboardInterrupt:  # while it was still starting; later the commands see to it
        sys.exit(130)
