"""Products of the quantized step by every set of instructions that this processor has, and the step without AVX-512."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hanmo.inference.fused import packing, support

kernel = support.kernels("quantized")
pytestmark = pytest.mark.skipif(kernel is None, reason="AVX2 is missing")
GROUPS, AVX2 = 3, "+avx2,+fma,+bmi2,+f16c,+sse4.2,+popcnt"


def products() -> list[str]:
    if kernel is None:
        return []
    best = [*support.INSTRUCTIONS].index(support.instructions())
    return [name for name in [*support.INSTRUCTIONS][: best + 1] if name != "amx"]


def weights(bits, group, random):
    """Weights [16, inputs] from end to end of their range, as they are packed, and a float32 factor for each group."""
    if bits == 8:
        numbers = random.integers(-127, 128, (16, GROUPS * group)).astype(np.int8)
        numbers[:2] = [[127], [-127]]
        return numbers, packing.pack_int8(numbers), random.random((16, 1), np.float32)
    numbers = random.integers(-8, 8, (16, GROUPS * group))
    numbers[:2] = [[7], [-8]]
    halves = (numbers & 15).astype(np.uint8)
    return numbers, packing.pack_int4(halves[:, 0::2] | halves[:, 1::2] << 4), random.random((16, GROUPS), np.float32)


@pytest.mark.parametrize("instructions", products())
@pytest.mark.parametrize(("tokens", "group"), [(1, 128), (4, 128), (4, 32)])
@pytest.mark.parametrize("bits", [8, 4])
def test_sums_are_exact_and_added_in_the_order_of_the_groups(bits, tokens, group, instructions):
    from numba import njit

    from hanmo.inference.fused import quantized_blocks

    random = np.random.default_rng(bits)
    numbers, packed, factors = weights(bits, group, random)
    x = random.integers(-127, 128, (tokens, GROUPS * group)).astype(np.int8)
    x[0], x[-1, :group] = 127, -127  # sums that do not fit 16 bits
    x_scales = random.random((tokens, GROUPS), np.float32)
    groups = x.reshape(tokens, GROUPS, group).astype(np.int32)
    shift = np.ascontiguousarray(-(1 << bits - 1) * groups.sum(-1), np.int32)
    scales, bias, out = packing.pack_scales(factors), np.ones(16, np.float32), np.zeros((tokens, 16), np.float32)
    block = quantized_blocks.product(bits, tokens, group, instructions)
    run = njit(lambda given: block(given))
    arrays = packed, scales, bias, np.pad(x, ((0, 0), (0, packing.BETWEEN))), x_scales, shift
    run((*(array.ctypes.data for array in arrays), GROUPS, out.ctypes.data, 64))

    total = np.zeros((tokens, 16))
    for number in range(GROUPS):
        sums = groups[:, number] @ numbers.reshape(16, GROUPS, group)[:, number].astype(np.int32).T
        factor = x_scales[:, number, None] * (np.float32(1) if bits == 8 else factors[:, number])
        total = (sums * factor.astype(np.float64) + total).astype(np.float32)  # exact in float64, rounded once
    expected = (total * factors[:, 0].astype(np.float64) + 1).astype(np.float32) if bits == 8 else total + bias
    assert np.array_equal(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [{"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}, *({"HANMO_CPU": each} for each in products()[-1:])],
)
def test_the_tests_of_the_step_pass_with_lower_instructions(variables):
    test = Path(__file__).with_name("test_fused_quantized.py")
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "-p", "no:cacheprovider", str(test)]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout
