"""Folders for other programs."""
