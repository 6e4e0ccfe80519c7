"""One token of one row through all blocks of a float32 network, whose matrices keep the layout they were loaded with.

Every thread reads one contiguous part of each matrix: some inputs if the layout is [in, out], as in TensorFlow, some
outputs if it is [out, in]. Behind a barrier every thread adds up the partial products of all. With 2 threads and
matrices [in, out] this reads 60 GB/s, oneDNN 38.
"""

import numpy as np
from numba import carray, njit

from hanmo.inference.fused import functions as fn

__all__ = ["step"]


@njit(**fn.FAST)
def _partial_product(layout, x, inputs, outputs, thread, threads, partial):
    """Multiply x [inputs] by this thread's share of a matrix, into its own part of partial [threads x outputs]."""
    fn.wide_vectors()
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
    fn.wide_vectors()
    outputs = len(out)
    for i in range(outputs):
        out[i] = partial[i]
    if layout[2]:
        for thread in range(1, threads):
            own = partial[thread * outputs : (thread + 1) * outputs]
            for i in range(outputs):
                out[i] += own[i]
    if layout[3]:
        b = fn.float_view(layout[3], outputs)
        for i in range(outputs):
            out[i] += b[i]


@njit(**fn.FAST)
def _attend(f, sizes, scale, rotary, relative, table, projected, first, last, attended):
    """Attend with heads first to last: to the cache, with the token's own key and value, or to the encoder's output."""
    _, size, value_size, _ = sizes
    own, room, count, bias = f[17] > 0, f[26], f[27], f[28]
    scores = np.empty(count, np.float32)
    for head in range(first, last):
        keys = carray(fn.pointer(f[24] + 4 * head * room * size), (room, size), np.float32)
        values = carray(fn.pointer(f[25] + 4 * head * room * value_size), (room, value_size), np.float32)
        q, k = projected[0, head * size : (head + 1) * size], projected[1, head * size : (head + 1) * size]
        out = attended[head * value_size : (head + 1) * value_size]
        if own:
            fn.rotate(q, rotary)
            fn.rotate(k, rotary)
            keys[count - 1] = k
            values[count - 1] = projected[2, head * value_size : (head + 1) * value_size]
        fn.score(q, keys, scale, scores)
        if bias:
            added = fn.float_view(bias + 4 * head * count, count)
            for place in range(count):
                scores[place] += added[place]
        by_distance = relative if own else relative[:0]
        for place in range(len(by_distance)):
            row = table[by_distance[place]]
            for i in range(size):
                scores[place] += scale * q[i] * row[i]
        fn.softmax(scores)
        fn.weigh(scores, values, out)
        for place in range(len(by_distance)):
            row = table[by_distance[place]]
            for i in range(size):
                out[i] += scores[place] * row[i]


@fn.kernel(
    "void(int64, int64, int64[::1], float32[::1], int64[:, ::1], UniTuple(int64, 4), float32, float32, boolean, "
    "float32[::1], int64[::1], float32[:, ::1], float32[::1], float32[::1])"
)
def step(thread, threads, counter, x, layers, sizes, scale, eps, rms, rotary, relative, table, shared, hidden):
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.   x: [hidden_size], input of the first block; unchanged.
    layers: int64 [sub-layer, 29] of all blocks in order; addresses are 0 for what is missing.
      0 … 15  matrices: (address, row stride, 1 for layout [in, out], bias) of three that multiply the input, and of the
              output: query, key, value; query alone to attend to an encoder; or input and gate of a feed-forward
      16 … 19 outputs of the first three, 0 for none, and inputs of the last
      20 … 23 (weight, bias) of the norms before and after
      24 … 28 keys and values, [heads, room, size] each, of which the token is the last in its own cache; room; their
              number; what is added to the scores, [heads, number]; all 0 in a feed-forward
    sizes: (heads, key size, value size, activation).   rms: whether norms are RMS norms.
    rotary: [key size] of the token, or [0].   relative: [number] rows of table [rows, key size], or [0].
    shared: float32 [values + threads x (the most of 16 … 18 together + hidden_size)], scratch.
    hidden: [hidden_size], output of the last block.
    """
    heads, _, value_size, kind = sizes
    hidden_size, values = len(x), heads * value_size
    x = x.copy()
    h, y = np.empty(hidden_size, np.float32), np.empty(hidden_size, np.float32)
    projected = np.empty((3, layers[:, 16:19].max()), np.float32)
    mixed = np.empty(layers[:, 19].max(), np.float32)
    attended, last_partial = shared[:values], shared[values : values + threads * hidden_size]
    partial = shared[values + threads * hidden_size :]
    first, last = fn.share(heads, thread, threads)
    barriers = 0
    for number in range(len(layers)):
        f = layers[number]
        ends = np.cumsum(np.array([0, f[16], f[17], f[18]])) * threads
        fn.norm(x, f[20], f[21], eps, h, rms)
        for each in range(3):
            own = partial[ends[each] : ends[each + 1]]
            _partial_product(fn.matrix(f, each), h, hidden_size, f[16 + each], thread, threads, own)
        barriers = fn.barrier(counter, barriers, threads)
        for each in range(3):
            own = partial[ends[each] : ends[each + 1]]
            _sum_partials(fn.matrix(f, each), threads, own, projected[each, : f[16 + each]])
        if f[27]:
            _attend(f, sizes, scale, rotary, relative, table, projected, first, last, attended)
            barriers = fn.barrier(counter, barriers, threads)
            mixed[:values] = attended
        else:
            mixed[: f[19]] = projected[1 if f[17] else 0, : f[19]]
            fn.activate(mixed[: f[19]], kind)
            if f[17]:
                for i in range(f[19]):
                    mixed[i] *= projected[0, i]
        _partial_product(fn.matrix(f, 3), mixed, f[19], hidden_size, thread, threads, last_partial)
        barriers = fn.barrier(counter, barriers, threads)
        _sum_partials(fn.matrix(f, 3), threads, last_partial, y)
        fn.add_norm(x, y, f[22], f[23], eps, rms)
    if thread == 0:
        hidden[:] = x
    fn.barrier(counter, barriers, threads)
