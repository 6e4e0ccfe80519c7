"""Stochastic rounding of float32 values into bfloat16 tensors.

Knows bits and generators; knows nothing of optimizers. A bfloat16 weight of 1 moves in steps of 1/128, so that a plain
copy loses every smaller update; rounding up or down by chance keeps the mean of many of them.
"""

import hashlib

import torch
from torch import Tensor

__all__ = ["noise_generator", "round_stochastically"]


def noise_generator(device: torch.device, *key: int) -> torch.Generator:
    """Make the generator that belongs to a key, for example (seed, stream, step).

    The same key gives the same noise on the same kind of device, in whatever order keys are asked for, so that a
    resumed run needs no generator state: the counters are the state.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()  # the CPU's generator takes 32 bits of seed
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


def round_stochastically(target: Tensor, values: Tensor, *, generator: torch.Generator) -> None:
    """Write float32 values into a bfloat16 tensor, rounded so that the mean is kept.

    target: bfloat16, overwritten.   values: float32 of the same shape, dense in memory; destroyed.
    A value that bfloat16 can hold is written as it is; infinities and NaN stay what they are.
    """
    count = values.numel()
    # One 64-bit draw serves four values: drawing is the dearest part on the CPU.
    noise = torch.empty((count + 3) // 4, dtype=torch.int64, device=values.device)
    noise.random_(-(2**63), None, generator=generator)
    spread = noise.view(torch.int16)[:count].as_strided(values.shape, values.stride())
    bits = values.view(torch.int32)
    bits.add_(spread).add_(1 << 15).bitwise_and_(-(1 << 16))
    target.copy_(values)
