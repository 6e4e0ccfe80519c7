"""Decoding on a GPU: CUDA graphs over static shapes, Triton kernels."""
