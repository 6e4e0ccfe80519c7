"""The command line. Importing it is cheap: every command imports what it needs when it runs."""

__all__ = ["main"]


def main() -> None:
    """Run the command line on the program's arguments and exit; the entry point of `hanmo`."""
    from hanmo.cli.app import run

    run()
