"""Checkpoint files of every format, read and written as named NumPy arrays."""
