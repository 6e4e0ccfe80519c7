"""One token of one row through all blocks of a network of float32 whose matrices lie as they were loaded.

Every thread reads one stretch of each matrix from its beginning to its end: what lies [in, out], as TensorFlow has it,
is divided by inputs, what lies [out, in] by outputs; then all meet, and each adds up what all have found. Against
oneDNN, 2 threads, matrices [in, out]: 60 GB/s and 38.
"""

import numpy as np
from numba import carray, njit, types

from hanmo.inference.fused.functions import FAST, activate, add, attend, floats, into, matrix, meet, part, pointer

__all__ = ["FIELDS", "step"]

_FUNCTIONS = "c8534b4693d16bc1"  # functions.py's, so that Numba, which looks at this file, sees its changes

FIELDS = 6 * 4 + 4 * 2 + 2
"""Of a layer: (address, numbers from row to row, 1 if it lies [in, out], bias) of query, key, value, output, input,
output; (weight, bias) of the norms before and after attention, before and after the feed-forward; keys and values of
the tokens before, [heads, capacity, size] each. 0 for what is not there."""


@njit(**FAST)
def _spread(fields, x, inputs, outputs, thread, threads, found):
    """Multiply x [inputs] by this thread's share of a matrix, into its own stretch of found [threads x outputs]."""
    address, stride, by_input, _ = fields
    if by_input:
        w = floats(address, inputs * stride)
        y = found[thread * outputs : (thread + 1) * outputs]
        y[:] = np.float32(0.0)
        row, last = part(inputs, thread, threads)
        while row + 4 <= last:  # four at a time, so that sums are read and written a quarter as often
            a, b, c, d = x[row], x[row + 1], x[row + 2], x[row + 3]
            one, two = w[row * stride : row * stride + outputs], w[(row + 1) * stride : (row + 1) * stride + outputs]
            three = w[(row + 2) * stride : (row + 2) * stride + outputs]
            four = w[(row + 3) * stride : (row + 3) * stride + outputs]
            for i in range(outputs):
                y[i] += a * one[i] + b * two[i] + c * three[i] + d * four[i]
            row += 4
        for rest in range(row, last):
            one = w[rest * stride : rest * stride + outputs]
            for i in range(outputs):
                y[i] += x[rest] * one[i]
    else:
        w = floats(address, outputs * stride)
        first, last = part(outputs, thread, threads)
        for row in range(first, last):
            own = w[row * stride : row * stride + inputs]
            total = np.float32(0.0)
            for i in range(inputs):
                total += own[i] * x[i]
            found[row] = total


@njit(**FAST)
def _gather(fields, threads, found, out):
    """Add up what the threads have found, and the bias."""
    outputs = len(out)
    out[:] = found[:outputs]
    if fields[2]:
        for thread in range(1, threads):
            own = found[thread * outputs : (thread + 1) * outputs]
            for i in range(outputs):
                out[i] += own[i]
    if fields[3]:
        b = floats(fields[3], outputs)
        for i in range(outputs):
            out[i] += b[i]


_SIGNATURE = types.void(
    *[types.int64] * 2,
    *[types.int64[::1], types.float32[::1], types.int64[:, ::1], types.UniTuple(types.int64, 5)],
    *[types.float32] * 2,
    *[types.int64] * 2,
    *[types.float32[::1]] * 2,
)


@njit(_SIGNATURE, **FAST)
def step(thread, threads, counter, x, layers, sizes, scale, eps, capacity, at, shared, hidden):
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.   x: [hidden_size], what goes into the first block; unchanged.
    layers: int64 [layer, FIELDS].   sizes: (heads, key size, value size, intermediate size, activation).
    capacity, at: of keys and values; the token's are written at place `at`.
    shared: float32 [values + threads x (queries + keys + values + 2 hidden_size + feed-forward)], scratch.
    hidden: [hidden_size], what comes out of the last block.
    """
    heads, size, value_size, inner, kind = sizes
    hidden_size, narrow, values = len(x), heads * size, heads * value_size
    x = x.copy()
    h, y, wide = np.empty(hidden_size, np.float32), np.empty(hidden_size, np.float32), np.empty(inner, np.float32)
    q, k, v = np.empty(narrow, np.float32), np.empty(narrow, np.float32), np.empty(values, np.float32)
    seen, scores = np.empty(values, np.float32), np.empty(at + 1, np.float32)
    attended, shared = shared[:values], shared[values:]
    ends = np.cumsum(np.array([0, narrow, narrow, values, hidden_size, inner, hidden_size])) * threads
    meeting = 0
    one, other = part(heads, thread, threads)
    for layer in range(len(layers)):
        f = layers[layer]
        into(x, f[24], f[25], eps, h)
        _spread(matrix(f, 0), h, hidden_size, narrow, thread, threads, shared[ends[0] : ends[1]])
        _spread(matrix(f, 1), h, hidden_size, narrow, thread, threads, shared[ends[1] : ends[2]])
        _spread(matrix(f, 2), h, hidden_size, values, thread, threads, shared[ends[2] : ends[3]])
        meeting = meet(counter, meeting, threads)
        _gather(matrix(f, 0), threads, shared[ends[0] : ends[1]], q)
        _gather(matrix(f, 1), threads, shared[ends[1] : ends[2]], k)
        _gather(matrix(f, 2), threads, shared[ends[2] : ends[3]], v)
        keys = carray(pointer(f[32]), (heads, capacity, size), np.float32)
        kept = carray(pointer(f[33]), (heads, capacity, value_size), np.float32)
        for head in range(one, other):
            keys[head, at] = k[head * size : (head + 1) * size]
            kept[head, at] = v[head * value_size : (head + 1) * value_size]
            own = attended[head * value_size : (head + 1) * value_size]
            attend(q[head * size : (head + 1) * size], keys[head], kept[head], at + 1, scale, scores, own)
        meeting = meet(counter, meeting, threads)
        seen[:] = attended
        _spread(matrix(f, 3), seen, values, hidden_size, thread, threads, shared[ends[3] : ends[4]])
        meeting = meet(counter, meeting, threads)
        _gather(matrix(f, 3), threads, shared[ends[3] : ends[4]], y)
        add(x, y, f[26], f[27], eps)
        into(x, f[28], f[29], eps, h)
        _spread(matrix(f, 4), h, hidden_size, inner, thread, threads, shared[ends[4] : ends[5]])
        meeting = meet(counter, meeting, threads)
        _gather(matrix(f, 4), threads, shared[ends[4] : ends[5]], wide)
        for i in range(inner):
            wide[i] = activate(wide[i], kind)
        _spread(matrix(f, 5), wide, inner, hidden_size, thread, threads, shared[ends[5] : ends[6]])
        meeting = meet(counter, meeting, threads)
        _gather(matrix(f, 5), threads, shared[ends[5] : ends[6]], y)
        add(x, y, f[30], f[31], eps)
    if thread == 0:
        hidden[:] = x
    meet(counter, meeting, threads)
