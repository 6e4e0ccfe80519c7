"""The command line. Importing it is cheap: every command imports what it needs when it runs."""

import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line on the program's arguments and exit; the entry point of `hanmo`."""
    # Both are read when torch begins. OpenMP's threads sleep while they wait for each other: by default they spin, and
    # keep the thread that they wait for from running where other programs want the processor too. Large tensors are in
    # pages of 2 MiB where Linux gives them, which makes training on a CPU faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        from hanmo.cli.app import run

        run()
    except KeyboardInterrupt:  # while it was still starting; later the commands see to it
        sys.exit(130)
