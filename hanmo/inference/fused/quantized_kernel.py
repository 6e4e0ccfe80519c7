"""One token of one row through a decoder of int8 or int4 weights, at memory speed: x86 processors with AVX-512 VNNI.

Knows addresses and sizes. Numba compiles it once for a machine and caches the result beside this file. All threads run
`step`, with four barriers in a layer; each computes its rows of every product, its heads of attention, and all norms.
Results do not depend on the number of threads.

    x ─ in groups of 128 to 8 bits, a scale each ─► 64 products an instruction with rows of int8 or int4 ─► float32
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from hanmo.inference.fused import functions as fn

__all__ = ["step"]

_FUNCTIONS = "1724e853eec908ef"  # digest of functions.py: Numba's cache looks at changes of this file only

GROUP = 128  # inputs that share a scale
I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
LANES = 16
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)


def _row(bits):
    """Make the product of a row of weights [in] and a quantized x, all given by their addresses.

    The instruction multiplies unsigned by signed bytes: flipping the highest bit adds 128 (or 8) to the weights, and
    `shift` holds what that adds to a group's sum, negated, in its first lane.
    """

    def generate(context, builder, signature, args):
        weights, scales, numbers, x_scales, shift, groups = args
        number = ir.Constant
        dot = builder.module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.512", (), ir.FunctionType(INTS, [INTS] * 3))
        reduce = builder.module.declare_intrinsic(
            "llvm.vector.reduce.fadd.v16f32", (), ir.FunctionType(F32, [F32, FLOATS])
        )
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        group, total = builder.phi(I64), builder.phi(FLOATS)
        group.add_incoming(number(I64, 0), before)
        total.add_incoming(number(FLOATS, [0.0] * LANES), before)

        def of_group(address, nbytes, start=0, kind=INTS):
            """Load what this group has in an array with so many bytes a group, from byte `start` on."""
            offset = builder.add(builder.mul(group, number(I64, nbytes)), number(I64, start))
            place = builder.gep(builder.inttoptr(address, I8.as_pointer()), [offset])
            loaded = builder.load(builder.bitcast(place, kind.as_pointer()))
            loaded.align = 1
            return loaded

        halves = [of_group(numbers, GROUP, start) for start in (0, 64)]
        if bits == 8:
            rows = [of_group(weights, GROUP, start) for start in (0, 64)]
            rows = [builder.xor(row, number(INTS, [0x80808080 - (1 << 32)] * LANES)) for row in rows]
        else:
            low = number(INTS, [0x0F0F0F0F] * LANES)
            row = builder.xor(of_group(weights, 64), number(INTS, [0x88888888 - (1 << 32)] * LANES))
            rows = [builder.and_(row, low), builder.and_(builder.lshr(row, number(INTS, [4] * LANES)), low)]
        sums = of_group(shift, 4 * LANES)
        for row, half in zip(rows, halves, strict=True):
            sums = builder.call(dot, [sums, row, half])
        scale = of_group(x_scales, 4, kind=F32)
        if bits == 4:
            scale = builder.fmul(scale, of_group(scales, 4, kind=F32))
        spread = builder.insert_element(number(FLOATS, ir.Undefined), scale, number(I32, 0))
        spread = builder.shuffle_vector(spread, number(FLOATS, ir.Undefined), number(INTS, [0] * LANES))
        product = builder.fmul(builder.sitofp(sums, FLOATS), spread, flags=("contract",))
        result = builder.fadd(total, product, flags=("contract",))
        following = builder.add(group, number(I64, 1))
        group.add_incoming(following, loop)
        total.add_incoming(result, loop)
        builder.cbranch(builder.icmp_signed("<", following, groups), loop, after)
        builder.position_at_end(after)
        return builder.call(reduce, [number(F32, 0.0), result], fastmath=("reassoc",))

    def row(context, weights, scales, numbers, x_scales, shift, groups):
        return types.float32(*[types.int64] * 6), generate

    return intrinsic(row)


_row8, _row4 = _row(8), _row(4)


@njit(**fn.FAST)
def _quantize(x, bits, numbers, scales, shift):
    """Quantize x to 8 bits for `_product`; for 4-bit weights the even numbers of a group come before the odd."""
    zero = np.float32(128.0 if bits == 8 else 8.0)
    for group in range(len(x) // GROUP):
        own = x[group * GROUP : (group + 1) * GROUP]
        most = np.float32(0.0)
        for i in range(GROUP):
            most = max(most, abs(own[i]))
        scales[group] = most / np.float32(127.0)
        factor = np.float32(127.0) / most if most > np.float32(0.0) else np.float32(0.0)
        total = np.float32(0.0)
        to = numbers[group * GROUP : (group + 1) * GROUP]
        if bits == 8:
            for i in range(GROUP):
                near = np.rint(own[i] * factor)
                total += near
                to[i] = np.int8(near)
        else:
            for i in range(GROUP // 2):
                even, odd = np.rint(own[2 * i] * factor), np.rint(own[2 * i + 1] * factor)
                total += even + odd
                to[i], to[i + GROUP // 2] = np.int8(even), np.int8(odd)
        shift[group, 0] = np.int32(-zero * total)


@njit(**fn.FAST)
def _product(layout, first, last, numbers, scales, shift, groups, out):
    """Multiply rows first to last of a matrix, (bits, weights, scales, bias), by a quantized x."""
    bits, weights, row_scales, bias = layout
    x, x_scales, shifts = fn.address_of(numbers), fn.address_of(scales), fn.address_of(shift)
    if bits == 8:
        factors = fn.float_view(row_scales, last)
        for row in range(first, last):
            total = _row8(weights + row * groups * GROUP, np.int64(0), x, x_scales, shifts, groups)
            out[row] = total * factors[row]
    else:
        for row in range(first, last):
            at = weights + row * groups * (GROUP // 2)
            out[row] = _row4(at, row_scales + row * groups * 4, x, x_scales, shifts, groups)
    if bias:
        b = fn.float_view(bias, last)
        for row in range(first, last):
            out[row] += b[row]


@njit(
    "void(int64, int64, int64[::1], float32[::1], int64[:, ::1], int64[::1], UniTuple(int64, 4), float32, float32, "
    "uint16[:, :, :, :, ::1], int64, float32[::1], float32[::1])",
    **fn.FAST,
)
def step(thread, threads, counter, x, layers, output, sizes, scale, eps, cache, at, shared, logits):
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.   x: [hidden_size], the embedded token; unchanged.
    layers: int64 [layer, 24], (bits, weights, scales, bias) of query_key_value, output, input, output; (weight, bias)
    of the norms before and after attention, before and after the feed-forward. Addresses; 0 for what is missing.
    output: int64 [6], the same of the projection onto the vocabulary and of the last norm.
    sizes: (heads, size of a head, intermediate size, kind of activation as in `activate`).
    cache: uint16 [layer, 2, heads, room, size], bfloat16; the token's keys and values are written at index `at`.
    shared: float32 [2 hidden_size + max(3 hidden_size, feed-forward)], shared by threads.   logits: float32 [vocab].
    """
    heads, size, inner, kind = sizes
    hidden_size = heads * size
    x = x.copy()
    h = np.empty(hidden_size, np.float32)
    most = max(hidden_size, inner)
    numbers = np.empty(most, np.int8)
    scales = np.empty(most // GROUP, np.float32)
    shift = np.zeros((most // GROUP, LANES), np.int32)
    scores = np.empty(at + 1, np.float32)
    attended, y, wide = shared[:hidden_size], shared[hidden_size : 2 * hidden_size], shared[2 * hidden_size :]
    groups = hidden_size // GROUP
    barriers = 0
    for layer in range(len(layers)):
        f = layers[layer]
        # Attention: queries, keys and values of this thread's heads, which no other thread needs.
        fn.norm(x, f[16], f[17], eps, h)
        _quantize(h, f[0], numbers, scales, shift)
        first, last = fn.share(heads, thread, threads)
        for word in range(3):
            rows = word * hidden_size + first * size, word * hidden_size + last * size
            _product(fn.matrix(f, 0), rows[0], rows[1], numbers, scales, shift, groups, wide)
        for head in range(first, last):
            for word in range(2):
                start = (word + 1) * hidden_size + head * size
                for i in range(size):
                    cache[layer, word, head, at, i] = fn.to_bfloat16(wide[start + i])
            q = wide[head * size : (head + 1) * size]
            own = attended[head * size : (head + 1) * size]
            fn.attend(q, cache[layer, 0, head], cache[layer, 1, head], at + 1, scale, scores, own)
        barriers = fn.barrier(counter, barriers, threads)
        _quantize(attended, f[4], numbers, scales, shift)
        first, last = fn.share(hidden_size, thread, threads)
        _product(fn.matrix(f, 1), first, last, numbers, scales, shift, groups, y)
        barriers = fn.barrier(counter, barriers, threads)
        fn.add_norm(x, y, f[18], f[19], eps)
        # Feed-forward.
        fn.norm(x, f[20], f[21], eps, h)
        _quantize(h, f[8], numbers, scales, shift)
        first, last = fn.share(inner, thread, threads)
        _product(fn.matrix(f, 2), first, last, numbers, scales, shift, groups, wide)
        for i in range(first, last):
            wide[i] = fn.activate(wide[i], kind)
        barriers = fn.barrier(counter, barriers, threads)
        _quantize(wide[:inner], f[12], numbers, scales, shift)
        first, last = fn.share(hidden_size, thread, threads)
        _product(fn.matrix(f, 3), first, last, numbers, scales, shift, inner // GROUP, y)
        barriers = fn.barrier(counter, barriers, threads)
        fn.add_norm(x, y, f[22], f[23], eps)
    fn.norm(x, output[4], output[5], eps, h)
    _quantize(h, output[0], numbers, scales, shift)
    first, last = fn.share(len(logits), thread, threads)
    _product(fn.matrix(output, 0), first, last, numbers, scales, shift, groups, logits)
    fn.barrier(counter, barriers, threads)
