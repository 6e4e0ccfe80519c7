"""Whole steps of a single row as functions that Numba compiles: at the speed of the memory."""
