"""How far logits may differ by rounding alone, from the arithmetic of the CPU engine and the size of a network.

Every rounding is taken as an independent error of the root mean square (rms) that its format has, relative to what is
rounded, and every block as keeping the size of its errors beside that of its numbers, as norms do. n roundings of the
rms e then give the logits a relative error of e·√n. Largest of all are normal errors of six standard deviations.

    bfloat16    8 significant bits: half a unit in the last place is 2^-8 at most, uniform        2^-8 / √3
    8 bits      steps of peak/127, uniform; the largest of g normal numbers is √(2 ln 2g)         √(2 ln 2g) / 127 / √12
    4 bits      the same with steps of peak/7                                                     √(2 ln 2g) / 7 / √12

Where a processor or a kernel leaves a rounding out (no bfloat16 before AVX-512 BF16, no dynamic quantization of narrow
matrices), errors are smaller: the bounds hold on all of them.
"""

import math

import numpy as np

BFLOAT16 = 2**-8 / math.sqrt(3)
GROUP = 128  # inputs of a matrix that share a scale, of activations and of int4 weights
BLOCK = 6  # results of a sub-layer that are rounded: norm, two products, what is between them (2), sum
SIGMAS = 6


def steps(levels: int, hidden_size: int) -> float:
    """Give the rms error of rounding to so many levels on either side of 0, scaled by the largest of a group."""
    return math.sqrt(2 * math.log(2 * min(GROUP, hidden_size))) / levels / math.sqrt(12)


def relative_error(config, weights, *, to_float32):
    """Give the rms error of logits relative to their rms.

    to_float32: of rounded weights against float32 without any rounding; else of two runs with the same rounded weights.
    """
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    parts = [sublayer.kind for stack in stacks for sublayer in stack.order * stack.num_layers]
    eight, four = (steps(levels, config.main.hidden_size) for levels in (127, 7))
    matrices, caches = 2 * len(parts) + 1, 2 * sum(kind != "feed_forward" for kind in parts)
    variance = (BLOCK * len(parts) + 1) * BFLOAT16**2
    if weights != "bfloat16":
        variance += (matrices + caches) * eight**2
    if not to_float32:
        return math.sqrt(2 * variance)  # either run has its own errors
    return math.sqrt(variance + matrices * {"bfloat16": BFLOAT16, "int8": eight, "int4": four}[weights] ** 2)


def assert_near(found, expected, config, weights, *, to_float32=False):
    """Hold logits to others by the mean and the largest of their differences."""
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    assert found.shape == expected.shape
    scale = math.sqrt(np.square(expected).mean())
    off, error = np.abs(found - expected) / scale, relative_error(config, weights, to_float32=to_float32)
    assert off.mean() <= math.sqrt(2 / math.pi) * error  # the mean of |x| where x is normal
    assert off.max() <= SIGMAS * error
