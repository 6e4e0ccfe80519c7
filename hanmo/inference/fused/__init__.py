"""Fused decode steps of a single row, compiled by Numba; they run at memory speed."""
