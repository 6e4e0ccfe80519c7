"""One token of one row through all blocks of a float32 network, whose matrices keep the layout they were loaded with.

Every thread reads one contiguous part of each matrix: some inputs if the layout is [in, out], as in TensorFlow, some
outputs if it is [out, in]. Behind a barrier every thread adds up the partial products of all. With 2 threads and
matrices [in, out] this reads 60 GB/s, oneDNN 38.
"""

import numpy as np
from numba import carray, njit

from hanmo.inference.fused import functions as fn

__all__ = ["step"]

_FUNCTIONS = "1724e853eec908ef"  # digest of functions.py: Numba's cache looks at changes of this file only


@njit(**fn.FAST)
def _partial_product(layout, x, inputs, outputs, thread, threads, partial):
    """Multiply x [inputs] by this thread's share of a matrix, into its own part of partial [threads x outputs]."""
    address, stride, by_input, _ = layout
    if by_input:
        w = fn.float_view(address, inputs * stride)
        y = partial[thread * outputs : (thread + 1) * outputs]
        y[:] = np.float32(0.0)
        row, last = fn.share(inputs, thread, threads)
        while row + 4 <= last:  # four rows at a time read and write the sums a quarter as often
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
        w = fn.float_view(address, outputs * stride)
        first, last = fn.share(outputs, thread, threads)
        for row in range(first, last):
            own = w[row * stride : row * stride + inputs]
            total = np.float32(0.0)
            for i in range(inputs):
                total += own[i] * x[i]
            partial[row] = total


@njit(**fn.FAST)
def _sum_partials(layout, threads, partial, out):
    """Add up the partial products of all threads, and the bias."""
    outputs = len(out)
    out[:] = partial[:outputs]
    if layout[2]:
        for thread in range(1, threads):
            own = partial[thread * outputs : (thread + 1) * outputs]
            for i in range(outputs):
                out[i] += own[i]
    if layout[3]:
        b = fn.float_view(layout[3], outputs)
        for i in range(outputs):
            out[i] += b[i]


@njit(
    "void(int64, int64, int64[::1], float32[::1], int64[:, ::1], UniTuple(int64, 5), float32, float32, int64, int64, "
    "float32[::1], float32[::1])",
    **fn.FAST,
)
def step(thread, threads, counter, x, layers, sizes, scale, eps, capacity, at, shared, hidden):
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.   x: [hidden_size], input of the first block; unchanged.
    layers: int64 [layer, 34], (address, row stride, 1 for layout [in, out], bias) of query, key, value, output, input,
    output; (weight, bias) of the norms before and after attention, before and after the feed-forward; the cache's keys
    and values, [heads, capacity, size] each. Addresses; 0 for what is missing.
    sizes: (heads, key size, value size, intermediate size, activation).
    capacity: of keys and values; the token's are written at index `at`.
    shared: float32 [values + threads x (queries + keys + values + 2 hidden_size + feed-forward)], scratch.
    hidden: [hidden_size], output of the last block.
    """
    heads, size, value_size, inner, kind = sizes
    hidden_size, narrow, values = len(x), heads * size, heads * value_size
    x = x.copy()
    h, y, wide = np.empty(hidden_size, np.float32), np.empty(hidden_size, np.float32), np.empty(inner, np.float32)
    q, k, v = np.empty(narrow, np.float32), np.empty(narrow, np.float32), np.empty(values, np.float32)
    gathered, scores = np.empty(values, np.float32), np.empty(at + 1, np.float32)
    attended, shared = shared[:values], shared[values:]
    ends = np.cumsum(np.array([0, narrow, narrow, values, hidden_size, inner, hidden_size])) * threads
    barriers = 0
    first, last = fn.share(heads, thread, threads)
    for layer in range(len(layers)):
        f = layers[layer]
        fn.norm(x, f[24], f[25], eps, h)
        _partial_product(fn.matrix(f, 0), h, hidden_size, narrow, thread, threads, shared[ends[0] : ends[1]])
        _partial_product(fn.matrix(f, 1), h, hidden_size, narrow, thread, threads, shared[ends[1] : ends[2]])
        _partial_product(fn.matrix(f, 2), h, hidden_size, values, thread, threads, shared[ends[2] : ends[3]])
        barriers = fn.barrier(counter, barriers, threads)
        _sum_partials(fn.matrix(f, 0), threads, shared[ends[0] : ends[1]], q)
        _sum_partials(fn.matrix(f, 1), threads, shared[ends[1] : ends[2]], k)
        _sum_partials(fn.matrix(f, 2), threads, shared[ends[2] : ends[3]], v)
        keys = carray(fn.pointer(f[32]), (heads, capacity, size), np.float32)
        kept = carray(fn.pointer(f[33]), (heads, capacity, value_size), np.float32)
        for head in range(first, last):
            keys[head, at] = k[head * size : (head + 1) * size]
            kept[head, at] = v[head * value_size : (head + 1) * value_size]
            own = attended[head * value_size : (head + 1) * value_size]
            fn.attend(q[head * size : (head + 1) * size], keys[head], kept[head], at + 1, scale, scores, own)
        barriers = fn.barrier(counter, barriers, threads)
        gathered[:] = attended
        _partial_product(fn.matrix(f, 3), gathered, values, hidden_size, thread, threads, shared[ends[3] : ends[4]])
        barriers = fn.barrier(counter, barriers, threads)
        _sum_partials(fn.matrix(f, 3), threads, shared[ends[3] : ends[4]], y)
        fn.add_norm(x, y, f[26], f[27], eps)
        fn.norm(x, f[28], f[29], eps, h)
        _partial_product(fn.matrix(f, 4), h, hidden_size, inner, thread, threads, shared[ends[4] : ends[5]])
        barriers = fn.barrier(counter, barriers, threads)
        _sum_partials(fn.matrix(f, 4), threads, shared[ends[4] : ends[5]], wide)
        for i in range(inner):
            wide[i] = fn.activate(wide[i], kind)
        _partial_product(fn.matrix(f, 5), wide, inner, hidden_size, thread, threads, shared[ends[5] : ends[6]])
        barriers = fn.barrier(counter, barriers, threads)
        _sum_partials(fn.matrix(f, 5), threads, shared[ends[5] : ends[6]], y)
        fn.add_norm(x, y, f[30], f[31], eps)
    if thread == 0:
        hidden[:] = x
    fn.barrier(counter, barriers, threads)
