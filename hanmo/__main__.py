"""`python -m hanmo` is `hanmo`."""

from hanmo.cli import main

if __name__ == "__main__":
    main()
