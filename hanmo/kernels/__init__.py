"""Kernels that Numba compiles for the processor: each is compiled once and kept."""
