"""One token of one row through a whole decoder, at the speed of the memory: x86 processors with AVX-512 VNNI.

Knows addresses and sizes. Numba compiles it once for a machine and keeps that beside this file. All threads run `step`
and meet four times in a layer; each makes its rows of every product and its heads of attention, and all norms. A number
comes out the same whatever the count of threads.

    x ─ in groups of 128 to 8 bits, a scale each ─► 64 products an instruction with rows of int8 or int4 ─► float32
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

__all__ = ["FIELDS", "GLOBALS", "GROUP", "available", "step"]

GROUP = 128  # inputs that share a scale
FIELDS = 4 * 4 + 4 * 2
"""Of a layer: (bits, weights, scales, bias) of query_key_value, output, input, output; (weight, bias) of the norms
before and after attention, before and after the feed-forward; 0 where there is none."""
GLOBALS = 6
"""Bits, weights, scales and bias of the projection onto the vocabulary; weight and bias of the last norm."""

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
LANES = 16
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
BYTE = I8.as_pointer()


def available() -> bool:
    """Say whether this processor has the instructions."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512f") and features.get("avx512bw"))


def _vector(builder, pointer, kind):
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _at(builder, address, offset):
    return builder.gep(builder.inttoptr(address, BYTE), [offset])


def _row(bits):
    """Make the product of a row of weights [in] with a rounded x.

    The instruction multiplies bytes without a sign by bytes with one: weights get 128 (or 8) added by turning over
    their highest bit, and `shift` holds what that adds to a group's sum, negated, in its first lane.
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
        sums = _vector(builder, _at(builder, shift, builder.mul(group, number(I64, 4 * LANES))), INTS)
        x_at = builder.mul(group, number(I64, GROUP))
        halves = [
            _vector(builder, _at(builder, numbers, builder.add(x_at, number(I64, start))), INTS) for start in (0, 64)
        ]
        if bits == 8:
            for start, half in zip((0, 64), halves, strict=True):
                row = _vector(builder, _at(builder, weights, builder.add(x_at, number(I64, start))), INTS)
                row = builder.xor(row, number(INTS, [0x80808080 - (1 << 32)] * LANES))
                sums = builder.call(dot, [sums, row, half])
        else:
            low = number(INTS, [0x0F0F0F0F] * LANES)
            row = _vector(builder, _at(builder, weights, builder.mul(group, number(I64, 64))), INTS)
            row = builder.xor(row, number(INTS, [0x88888888 - (1 << 32)] * LANES))
            sums = builder.call(dot, [sums, builder.and_(row, low), halves[0]])
            row = builder.and_(builder.lshr(row, number(INTS, [4] * LANES)), low)
            sums = builder.call(dot, [sums, row, halves[1]])
        offset = builder.mul(group, number(I64, 4))
        scale = builder.load(builder.bitcast(_at(builder, x_scales, offset), F32.as_pointer()))
        if bits == 4:
            own = builder.load(builder.bitcast(_at(builder, scales, offset), F32.as_pointer()))
            scale = builder.fmul(scale, own)
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

    return generate


@intrinsic
def _row8(context, weights, scales, numbers, x_scales, shift, groups):
    return types.float32(*[types.int64] * 6), _row(8)


@intrinsic
def _row4(context, weights, scales, numbers, x_scales, shift, groups):
    return types.float32(*[types.int64] * 6), _row(4)


@intrinsic
def _pointer(context, address):
    """Take an address for a pointer."""
    return types.voidptr(types.int64), lambda context, builder, signature, args: builder.inttoptr(args[0], BYTE)


@intrinsic
def _address(context, array):
    """Give where an array's numbers begin."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, I64)

    return types.int64(array), generate


@intrinsic
def _widen(context, half):
    """bfloat16 → float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], I32), ir.Constant(I32, 16)), F32)

    return types.float32(types.uint16), generate


@intrinsic
def _narrow(context, number):
    """float32 → bfloat16, to the nearest, ties to even."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], I32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(I32, 16)), ir.Constant(I32, 1))
        bits = builder.add(builder.add(bits, odd), ir.Constant(I32, 0x7FFF))
        return builder.trunc(builder.lshr(bits, ir.Constant(I32, 16)), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _power_of_two(context, number):
    """2 to a whole number from -126 to 127, given as float32."""

    def generate(context, builder, signature, args):
        whole = builder.add(builder.fptosi(args[0], I32), ir.Constant(I32, 127))
        return builder.bitcast(builder.shl(whole, ir.Constant(I32, 23)), F32)

    return types.float32(types.float32), generate


@intrinsic
def _nearest(context, number):
    """float32 → the nearest whole float32."""

    def generate(context, builder, signature, args):
        near = builder.module.declare_intrinsic("llvm.nearbyint", [F32], ir.FunctionType(F32, [F32]))
        return builder.call(near, [args[0]])

    return types.float32(types.float32), generate


@intrinsic
def _byte(context, number):
    """Turn a whole float32 into int8."""

    def generate(context, builder, signature, args):
        return builder.trunc(builder.fptosi(args[0], I32), I8)

    return types.int8(types.float32), generate


@intrinsic
def _arrive(context, counter):
    """Add one to counter[0], all that was written before being seen by who sees it."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.atomic_rmw("add", data, ir.Constant(I64, 1), "seq_cst")
        return context.get_dummy_value()

    return types.void(counter), generate


@intrinsic
def _arrived(context, counter):
    """Read counter[0] anew, after a breath."""

    def generate(context, builder, signature, args):
        pause = builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), []))
        builder.call(pause, [])
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(data, "acquire", 8)

    return types.int64(counter), generate


_let_others = types.ExternalFunction("sched_yield", types.int32())
_fast = {"nogil": True, "cache": True, "fastmath": {"reassoc", "contract", "nsz", "nnan"}, "error_model": "numpy"}


@njit(**_fast)
def _meet(counter, meeting, threads):
    """Wait until all threads have come to their meeting of this number; return the next number."""
    _arrive(counter)
    spins = 0
    while _arrived(counter) < (meeting + 1) * threads:
        spins += 1
        if spins % 4096 == 0:  # another program may want the processor that a thread of ours needs
            _let_others()
    return meeting + 1


@njit(**_fast)
def _exp(x):
    """Compute e to x, to 1e-7 of it."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    whole = _nearest(x * np.float32(1.44269504))
    rest = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691e-4)
    y = y * rest + np.float32(1.3981999e-3)
    y = y * rest + np.float32(8.3334519e-3)
    y = y * rest + np.float32(4.1665796e-2)
    y = y * rest + np.float32(1.6666665e-1)
    y = y * rest + np.float32(0.5)
    return (y * rest * rest + rest + np.float32(1.0)) * _power_of_two(whole)


@njit(**_fast)
def _activate(x, kind):
    """0: GELU by erf (Abramowitz and Stegun 7.1.26, to 1.5e-7).   1: GELU by tanh.   2: ReLU."""
    one, half = np.float32(1.0), np.float32(0.5)
    if kind == 0:
        z = abs(x) * np.float32(0.70710678)
        t = one / (one + np.float32(0.3275911) * z)
        y = np.float32(1.061405429)
        y = y * t - np.float32(1.453152027)
        y = y * t + np.float32(1.421413741)
        y = y * t - np.float32(0.284496736)
        y = y * t + np.float32(0.254829592)
        erf = one - y * t * _exp(-z * z)
        return half * (x + abs(x) * erf)
    if kind == 1:
        u = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
        return x * (one - one / (_exp(u + u) + one))
    return max(x, np.float32(0.0))


@njit(**_fast)
def _floats(address, count):
    return carray(_pointer(address), (count,), np.float32)


@njit(**_fast)
def _norm(x, weight, bias, eps, out):
    """Layer norm; weight and bias are addresses, 0 for none."""
    count = len(x)
    mean = np.float32(0.0)
    for i in range(count):
        mean += x[i]
    mean /= np.float32(count)
    square = np.float32(0.0)
    for i in range(count):
        square += (x[i] - mean) * (x[i] - mean)
    factor = np.float32(1.0) / np.sqrt(square / np.float32(count) + np.float32(eps))
    for i in range(count):
        out[i] = (x[i] - mean) * factor
    if weight:
        w = _floats(weight, count)
        for i in range(count):
            out[i] *= w[i]
    if bias:
        b = _floats(bias, count)
        for i in range(count):
            out[i] += b[i]


@njit(**_fast)
def _round(x, bits, numbers, scales, shift):
    """Round x to 8 bits for `_product`; for weights of 4 bits the even numbers of a group come before the odd."""
    zero = np.float32(128.0 if bits == 8 else 8.0)
    for group in range(len(x) // GROUP):
        part = x[group * GROUP : (group + 1) * GROUP]
        most = np.float32(0.0)
        for i in range(GROUP):
            most = max(most, abs(part[i]))
        scales[group] = most / np.float32(127.0)
        factor = np.float32(127.0) / most if most > np.float32(0.0) else np.float32(0.0)
        total = np.float32(0.0)
        to = numbers[group * GROUP : (group + 1) * GROUP]
        if bits == 8:
            for i in range(GROUP):
                near = _nearest(part[i] * factor)
                total += near
                to[i] = _byte(near)
        else:
            for i in range(GROUP // 2):
                even, odd = _nearest(part[2 * i] * factor), _nearest(part[2 * i + 1] * factor)
                total += even + odd
                to[i], to[i + GROUP // 2] = _byte(even), _byte(odd)
        shift[group, 0] = np.int32(-zero * total)


@njit(**_fast)
def _product(matrix, first, last, numbers, scales, shift, groups, out):
    """Rows first to last of a matrix, (bits, weights, scales, bias), times a rounded x."""
    bits, weights, row_scales, bias = matrix
    x, x_scales, shifts = _address(numbers), _address(scales), _address(shift)
    if bits == 8:
        factors = _floats(row_scales, last)
        for row in range(first, last):
            total = _row8(weights + row * groups * GROUP, np.int64(0), x, x_scales, shifts, groups)
            out[row] = total * factors[row]
    else:
        for row in range(first, last):
            at = weights + row * groups * (GROUP // 2)
            out[row] = _row4(at, row_scales + row * groups * 4, x, x_scales, shifts, groups)
    if bias:
        b = _floats(bias, last)
        for row in range(first, last):
            out[row] += b[row]


@njit(**_fast)
def _attend(q, keys, values, count, scale, scores, out):
    """softmax(q kᵀ · scale) v over `count` keys and values [count, size] of bfloat16."""
    size = len(q)
    most = np.float32(-np.inf)
    for place in range(count):
        total = np.float32(0.0)
        for i in range(size):
            total += q[i] * _widen(keys[place, i])
        scores[place] = total * scale
        most = max(most, scores[place])
    total = np.float32(0.0)
    for place in range(count):
        scores[place] = _exp(scores[place] - most)
        total += scores[place]
    out[:] = np.float32(0.0)
    for place in range(count):
        share = scores[place] / total
        for i in range(size):
            out[i] += share * _widen(values[place, i])


@njit(**_fast)
def _part(count, thread, threads):
    """Divide so many rows among the threads."""
    return count * thread // threads, count * (thread + 1) // threads


_SIGNATURE = types.void(
    *[types.int64] * 2,
    *[types.int64[::1], types.float32[::1], types.int64[:, ::1], types.int64[::1], types.UniTuple(types.int64, 4)],
    *[types.float32] * 2,
    *[types.uint16[:, :, :, :, ::1], types.int64, types.float32[::1], types.float32[::1]],
)


@njit(_SIGNATURE, **_fast)
def step(thread, threads, counter, x, layers, ends, sizes, scale, eps, cache, at, shared, logits):
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.   x: [width], the embedded token; unchanged.
    layers: int64 [depth, FIELDS], ends: int64 [GLOBALS]: addresses, 0 for what is not there.
    sizes: (heads, size of a head, feed-forward width, kind of activation as in `_activate`).
    cache: uint16 [depth, 2, heads, room, size], bfloat16; the token's keys and values are written at place `at`.
    shared: float32 [2 width + max(3 width, feed-forward)], the threads' blackboard.   logits: float32 [vocab].
    """
    heads, size, inner, kind = sizes
    width = heads * size
    x = x.copy()
    h = np.empty(width, np.float32)
    most = max(width, inner)
    numbers = np.empty(most, np.int8)
    scales = np.empty(most // GROUP, np.float32)
    shift = np.zeros((most // GROUP, LANES), np.int32)
    scores = np.empty(at + 1, np.float32)
    attended, y, wide = shared[:width], shared[width : 2 * width], shared[2 * width :]
    narrow = width // GROUP
    meeting = 0
    for depth in range(len(layers)):
        f = layers[depth]
        # Attention: queries, keys and values of this thread's heads, which nobody else needs.
        if f[16]:
            _norm(x, f[16], f[17], eps, h)
        else:
            h[:] = x
        _round(h, f[0], numbers, scales, shift)
        one, other = _part(heads, thread, threads)
        for part in range(3):
            rows = part * width + one * size, part * width + other * size
            _product((f[0], f[1], f[2], f[3]), rows[0], rows[1], numbers, scales, shift, narrow, wide)
        for head in range(one, other):
            for part in range(2):
                start = (part + 1) * width + head * size
                for i in range(size):
                    cache[depth, part, head, at, i] = _narrow(wide[start + i])
            q = wide[head * size : (head + 1) * size]
            own = attended[head * size : (head + 1) * size]
            _attend(q, cache[depth, 0, head], cache[depth, 1, head], at + 1, scale, scores, own)
        meeting = _meet(counter, meeting, threads)
        _round(attended, f[4], numbers, scales, shift)
        one, other = _part(width, thread, threads)
        _product((f[4], f[5], f[6], f[7]), one, other, numbers, scales, shift, narrow, y)
        meeting = _meet(counter, meeting, threads)
        for i in range(width):
            x[i] += y[i]
        if f[18]:
            _norm(x, f[18], f[19], eps, x)
        # Feed-forward.
        if f[20]:
            _norm(x, f[20], f[21], eps, h)
        else:
            h[:] = x
        _round(h, f[8], numbers, scales, shift)
        one, other = _part(inner, thread, threads)
        _product((f[8], f[9], f[10], f[11]), one, other, numbers, scales, shift, narrow, wide)
        for i in range(one, other):
            wide[i] = _activate(wide[i], kind)
        meeting = _meet(counter, meeting, threads)
        _round(wide[:inner], f[12], numbers, scales, shift)
        one, other = _part(width, thread, threads)
        _product((f[12], f[13], f[14], f[15]), one, other, numbers, scales, shift, inner // GROUP, y)
        meeting = _meet(counter, meeting, threads)
        for i in range(width):
            x[i] += y[i]
        if f[22]:
            _norm(x, f[22], f[23], eps, x)
    if ends[4]:
        _norm(x, ends[4], ends[5], eps, x)
    _round(x, ends[0], numbers, scales, shift)
    one, other = _part(len(logits), thread, threads)
    _product((ends[0], ends[1], ends[2], ends[3]), one, other, numbers, scales, shift, narrow, logits)
    _meet(counter, meeting, threads)
