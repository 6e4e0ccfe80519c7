"""bert4keras 0.11.5 by its own names and conventions, served by Hanmo."""

__version__ = "0.11.5"
