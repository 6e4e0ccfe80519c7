"""The parts of the fused steps: conversions of numbers, norms, activations, attention, and the threads' barrier.

Numba inlines these functions in their callers. They know arrays and addresses only. `kernel` compiles a step.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from hanmo.kernels import locator

I64 = ir.IntType(64)
FAST = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "nnan"}, "error_model": "numpy"}
"""Compiler options of all functions: sums in any order, and the GIL released."""


def kernel(signature):
    """Compile a step when its module is imported, or read what was compiled before."""
    return locator.kernel(signature, **FAST)


@intrinsic
def pointer(context, address):
    """Convert an address to a pointer."""
    bytes_at = ir.IntType(8).as_pointer()
    return types.voidptr(types.int64), lambda context, builder, signature, args: builder.inttoptr(args[0], bytes_at)


@intrinsic
def wide_vectors(context):
    """Have the loops of the calling function use vectors of 512 bits, where LLVM would prefer half of that.

    Numba optimizes this function by itself before it is inlined in others.
    """

    def generate(context, builder, signature, args):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # its own `add` knows few names
        return context.get_dummy_value()

    return types.void(), generate


@njit(**FAST)
def address_of(array):
    """Give the address of an array's data."""
    return np.int64(array.ctypes.data)


@njit(**FAST)
def to_bfloat16(number):
    """float32 → bfloat16 as uint16, to the nearest, ties to even."""
    bits = np.float32(number).view(np.uint32)
    return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@intrinsic
def _arrive(context, counter):
    """Add 1 to the number at an address; whoever reads it then also sees all earlier writes."""

    def generate(context, builder, signature, args):
        builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), ir.Constant(I64, 1), "seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _arrived(context, counter):
    """Read the number at an address from memory, after a pause instruction."""

    def generate(context, builder, signature, args):
        pause = builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), []))
        builder.call(pause, [])
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@njit(**FAST)
def barrier(counter, barriers, threads):
    """Wait until all threads have reached barrier number `barriers`; return the number of the next one."""
    address, spins = address_of(counter), 0
    _arrive(address)
    while _arrived(address) < (barriers + 1) * threads:
        spins += 1
        if spins % 4096 == 0:  # the core may be needed by a thread that has not arrived
            _sched_yield()
    return barriers + 1


@njit(**FAST)
def exp(x):
    """Compute e to the power of x, to a relative error of 1e-7."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    whole = np.rint(x * np.float32(1.44269504))
    rest = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691e-4)
    y = y * rest + np.float32(1.3981999e-3)
    y = y * rest + np.float32(8.3334519e-3)
    y = y * rest + np.float32(4.1665796e-2)
    y = y * rest + np.float32(1.6666665e-1)
    y = y * rest + np.float32(0.5)
    power_of_two = np.int32((np.int32(whole) + 127) << 23).view(np.float32)
    return (y * rest * rest + rest + np.float32(1.0)) * power_of_two


@njit(**FAST)
def _gelu_erf(x):
    """GELU by erf (Abramowitz and Stegun 7.1.26, to 1.5e-7)."""
    one, half = np.float32(1.0), np.float32(0.5)
    z = abs(x) * np.float32(0.70710678)
    t = one / (one + np.float32(0.3275911) * z)
    y = np.float32(1.061405429)
    y = y * t - np.float32(1.453152027)
    y = y * t + np.float32(1.421413741)
    y = y * t - np.float32(0.284496736)
    y = y * t + np.float32(0.254829592)
    erf = one - y * t * exp(-z * z)
    return half * (x + abs(x) * erf)


@njit(**FAST)
def _gelu_tanh(x):
    one = np.float32(1.0)
    u = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
    return x * (one - one / (exp(u + u) + one))


@njit(**FAST)
def activate(x, kind):
    """Activate all numbers of an array.   kind: 0 GELU by erf, 1 GELU by tanh, 2 ReLU."""
    wide_vectors()
    if kind == 0:  # a loop for each kind in one array, which the compiler makes vectors of
        for i in range(len(x)):
            x[i] = _gelu_erf(x[i])
    elif kind == 1:
        for i in range(len(x)):
            x[i] = _gelu_tanh(x[i])
    else:
        for i in range(len(x)):
            x[i] = max(x[i], np.float32(0.0))


@njit(**FAST)
def float_view(address, count):
    """View `count` float32 at an address as an array."""
    return carray(pointer(address), (count,), np.float32)


@njit(**FAST)
def norm(x, weight, bias, eps, out, rms=False):
    """Layer or RMS norm of x, or x itself if weight is 0; weight and bias are addresses, 0 for none."""
    wide_vectors()
    count = len(out)
    for i in range(count):  # Numba does not vectorize an assignment of the whole array
        out[i] = x[i]
    if not weight:
        return
    mean = np.float32(0.0)
    if not rms:
        for i in range(count):
            mean += out[i]
        mean /= np.float32(count)
        for i in range(count):
            out[i] -= mean
    square = np.float32(0.0)
    for i in range(count):
        square += out[i] * out[i]
    factor = np.float32(1.0) / np.sqrt(square / np.float32(count) + np.float32(eps))
    w = float_view(weight, count)
    for i in range(count):
        out[i] *= factor * w[i]
    if bias:
        b = float_view(bias, count)
        for i in range(count):
            out[i] += b[i]


@njit(**FAST)
def add_norm(x, y, weight, bias, eps, rms=False):
    """Add a sub-layer's output y to x, and normalize x if weight is not 0."""
    wide_vectors()
    for i in range(len(x)):
        x[i] += y[i]
    if weight:
        norm(x, weight, bias, eps, x, rms)


@njit(**FAST)
def matrix(layout, number):
    """Give the four fields of a matrix of a layer."""
    return layout[4 * number], layout[4 * number + 1], layout[4 * number + 2], layout[4 * number + 3]


@njit(**FAST)
def rotate(x, table):
    """Rotate the pairs (2i, 2i + 1) of x by a position's sines and cosines, interleaved; none for an empty table."""
    for i in range(0, len(table), 2):
        even, odd = x[i], x[i + 1]
        x[i] = even * table[i + 1] - odd * table[i]
        x[i + 1] = odd * table[i + 1] + even * table[i]


@njit(**FAST)
def score(q, keys, scale, scores):
    """Score as many keys [count, size] as there are scores: q kᵀ · scale."""
    for place in range(len(scores)):
        total = np.float32(0.0)
        for i in range(len(q)):
            total += q[i] * keys[place, i]
        scores[place] = total * scale


@njit(**FAST)
def softmax(scores):
    """Replace scores by their softmax."""
    most, total = np.float32(-np.inf), np.float32(0.0)
    for place in range(len(scores)):
        most = max(most, scores[place])
    for place in range(len(scores)):
        scores[place] = exp(scores[place] - most)
        total += scores[place]
    for place in range(len(scores)):
        scores[place] /= total


@njit(**FAST)
def weigh(weights, values, out):
    """Add up values [count, size] with as many weights."""
    out[:] = np.float32(0.0)
    for place in range(len(weights)):
        for i in range(len(out)):
            out[i] += weights[place] * values[place, i]


@njit(**FAST)
def share(count, thread, threads):
    """Divide a count among the threads: first and last + 1 of this thread's share."""
    return count * thread // threads, count * (thread + 1) // threads
