"""Stochastic rounding of float32 values into bfloat16 tensors.

Knows bits; knows nothing of optimizers. A bfloat16 weight of 1 moves in steps of 1/128, so that a plain copy loses
every smaller update; rounding up or down by chance keeps the mean of many of them. The noise is a hash of a key and of
the place in the tensor: no generator, hence no state, and the same on every device.
"""

import hashlib

import torch
from torch import Tensor

__all__ = ["noise_key", "round_stochastically"]

# Odd factors with well-spread bits (of xxHash and MurmurHash3), as signed 32-bit numbers.
_FIRST, _SECOND = 0x9E3779B1 - (1 << 32), 0x85EBCA77 - (1 << 32)


def noise_key(*parts: int) -> int:
    """Mix numbers, for example (seed, stream, step), into a key: a signed 32-bit number."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def round_stochastically(target: Tensor, values: Tensor, *, key: Tensor) -> None:
    """Write float32 values into a bfloat16 tensor, rounded so that the mean is kept.

    target: bfloat16, overwritten.   values: float32 of the same shape, dense in memory; destroyed.
    key: of the noise, one int32.
    A value that bfloat16 can hold is written as it is; infinities and NaN stay what they are.
    """
    noise = torch.arange(values.numel(), dtype=torch.int32, device=values.device)
    noise.mul_(_FIRST).add_(key)
    noise.bitwise_xor_((noise >> 15).bitwise_and_(0x1FFFF)).mul_(_SECOND)
    noise = (noise >> 16).bitwise_and_(0xFFFF)
    bits = values.view(torch.int32)
    bits = bits.add_(noise.as_strided(values.shape, values.stride())).bitwise_and_(-(1 << 16))
    target.copy_(bits.view(torch.float32))
