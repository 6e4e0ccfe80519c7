"""AdaFactor's passes over a matrix on a CPU, each one loop compiled by Numba, for rows that a thread owns.

Importing it compiles, so it is imported by `hanmo.kernels.cache`. Matrices are float32, or bfloat16 as their bits in
uint16. The formulas are `adafactor_update`'s.
"""

import numpy as np
from numba import types
from numba.extending import overload

from hanmo.kernels.locator import kernel

FAST = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_TOGETHER = 64  # rows whose squares are summed before they are added to a column's sum, so that it loses no digits
_FIRST, _SECOND = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)


def compiled(arguments):
    """Compile a function for matrices of both types.   arguments: Numba's types, {0} the matrices'."""
    return kernel([f"({arguments.format(kind)})" for kind in ("float32", "uint16")], **FAST)


def _number(x):
    """Return a float32, given one or the bits of a bfloat16."""


@overload(_number, inline="always")
def _number_of(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def _rounded(x, place, key, like):
    """Return a float32 as it is, or as the bits of a bfloat16 rounded up or down by the noise of a place."""


@overload(_rounded, inline="always")
def _rounded_of(x, place, key, like):
    if like != types.uint16:
        return lambda x, place, key, like: x

    def rounded(x, place, key, like):
        noise = np.uint32(place * _FIRST + key)
        noise = np.uint32((noise ^ np.uint32(noise >> np.uint32(15))) * _SECOND)
        bits = np.uint32(np.float32(x).view(np.uint32) + np.uint32(noise >> np.uint32(16)))
        return np.uint16(bits >> np.uint32(16))

    return rounded


@compiled("{0}[:,::1], int64, int64, float32[::1]")
def sums_of_squares(grad, first, last, row_sums):
    """Write the sums of the squares of rows first … last - 1; return those of the columns over these rows."""
    column_sums, some = np.zeros(grad.shape[1], np.float32), np.empty(grad.shape[1], np.float32)
    for start in range(first, last, _TOGETHER):
        some[:] = 0
        for row in range(start, min(start + _TOGETHER, last)):
            total = np.float32(0)
            for column in range(grad.shape[1]):
                square = _number(grad[row, column]) * _number(grad[row, column])
                total += square
                some[column] += square
            row_sums[row] = total
        column_sums += some
    return column_sums


@compiled("{0}[:,::1], int64, int64")
def sum_of_squares(weight, first, last):
    """Sum the squares of rows first … last - 1."""
    total = 0.0
    for row in range(first, last):
        some = np.float32(0)
        for column in range(weight.shape[1]):
            some += _number(weight[row, column]) * _number(weight[row, column])
        total += some
    return total


@compiled("{0}[:,::1], int64, int64, float32[::1], float32[::1], float32")
def sum_of_squared_updates(grad, first, last, by_row, by_column, joint_eps):
    """Sum the squares of the updates of rows first … last - 1 before clipping; joint_eps: see `update`."""
    total = 0.0
    for row in range(first, last):
        some = np.float32(0)
        if joint_eps < 0:
            for column in range(grad.shape[1]):
                x = _number(grad[row, column]) * by_row[row] * by_column[column]
                some += x * x
        else:
            for column in range(grad.shape[1]):
                x = _number(grad[row, column])
                some += x * x / (by_row[row] * by_column[column] + joint_eps)
        total += some
    return total


@compiled(
    "{0}[:,::1], int64, int64, {0}[:,::1], float32[::1], float32[::1], float32, float32, float32, uint32[::1], int64"
)
def update(grad, first, last, weight, by_row, by_column, joint_eps, kept, factor, keys, block):
    """Write weight * kept - factor * update into rows first … last - 1.

    joint_eps: added to by_row * by_column, the second moment; below 0 these two are factors of the gradient.
    keys: of the noise, one for each `block` rows.
    """
    columns = grad.shape[1]
    for row in range(first, last):
        place, key = np.uint32(row % block * columns), keys[row // block]
        for column in range(columns):
            x = _number(grad[row, column])
            if joint_eps < 0:
                x *= by_row[row] * by_column[column]
            else:
                x /= np.sqrt(by_row[row] * by_column[column] + joint_eps)
            x = _number(weight[row, column]) * kept - factor * x
            weight[row, column] = _rounded(x, np.uint32(place + np.uint32(column)), key, weight[row, column])
