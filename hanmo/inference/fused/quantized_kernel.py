"""Some tokens, of one row or several, through a decoder of int8 or int4 weights, which are read once.

For x86 processors with AVX-512 VNNI. Knows addresses and sizes. Numba compiles it once for a machine and caches the
result beside this file. All threads run `step`, with four barriers in a layer; each computes its rows of every product,
its heads of attention, and all norms. A token's results depend neither on the number of threads nor on other tokens of
the step: its numbers are computed by the same instructions in the same order.

    x ─ in groups of 128 to 8 bits, a scale each ─► 64 products an instruction with rows of int8 or int4 ─► float32
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from hanmo.inference.fused import functions as fn

__all__ = ["step"]

GROUP = 128  # inputs that share a scale
I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
LANES = 16
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)


def _block(bits, rows, tokens):
    """Make the product of so many rows of weights [in] with so many quantized tokens, all given by their addresses.

    The instruction multiplies unsigned by signed bytes: flipping the highest bit adds 128 (or 8) to the weights, and
    `shift` holds what that adds to a group's sum, negated, in its first lane. Every number of the result is computed
    by the same operations in the same order, however large the block.
    """

    def generate(context, builder, signature, args):
        name, kind = f"hanmo_block_{bits}_{rows}_{tokens}", ir.FunctionType(ir.VoidType(), [I64] * 8)
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, kind, name)
            function.linkage = "linkonce_odr"
            function.attributes.add("noinline")
            _build(ir.IRBuilder(function.append_basic_block()), function.args, bits, rows, tokens)
        builder.call(function, args)
        return context.get_dummy_value()

    def block(context, weights, scales, numbers, x_scales, shift, groups, out, stride):
        return types.void(*[types.int64] * 8), generate

    return intrinsic(block)


def _build(builder, arguments, bits, rows, tokens):
    """Write the function of a block: a loop over the groups, with a sum for each row and token."""
    weights, scales, numbers, x_scales, shift, groups, out, stride = arguments
    number, declare = ir.Constant, builder.module.declare_intrinsic
    dot = declare("llvm.x86.avx512.vpdpbusd.512", (), ir.FunctionType(INTS, [INTS] * 3))
    fma = declare("llvm.fma.v16f32", (), ir.FunctionType(FLOATS, [FLOATS] * 3))
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    group = builder.phi(I64)
    group.add_incoming(number(I64, 0), before)
    totals = [[builder.phi(FLOATS) for _ in range(tokens)] for _ in range(rows)]

    def at(address, each, nbytes, start, kind):
        """Point to what this group has in array `each` of several, with so many bytes a group, from byte `start` on."""
        place = builder.add(builder.mul(groups, number(I64, each)), group)
        offset = builder.add(builder.mul(place, number(I64, nbytes)), number(I64, start))
        return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

    def load(address, each, nbytes, start=0, kind=INTS):
        loaded = builder.load(at(address, each, nbytes, start, kind))
        loaded.align = 1
        return loaded

    def spread(scale):
        vector = builder.insert_element(number(FLOATS, ir.Undefined), scale, number(I32, 0))
        return builder.shuffle_vector(vector, number(FLOATS, ir.Undefined), number(INTS, [0] * LANES))

    def unsigned(row):
        """Load a row's weights as two vectors of unsigned bytes."""
        if bits == 8:
            parts = [load(weights, row, GROUP, start) for start in (0, 64)]
            return [builder.xor(part, number(INTS, [0x80808080 - (1 << 32)] * LANES)) for part in parts]
        low = number(INTS, [0x0F0F0F0F] * LANES)
        both = builder.xor(load(weights, row, 64), number(INTS, [0x88888888 - (1 << 32)] * LANES))
        return [builder.and_(both, low), builder.and_(builder.lshr(both, number(INTS, [4] * LANES)), low)]

    if rows == 4:  # memory would wait while a block is computed: fetch the weights of the next rows
        for row in range(rows, 2 * rows):
            for start in range(0, GROUP * bits // 8, 64):
                _prefetch(builder, at(weights, row, GROUP * bits // 8, start, I8))
    matrix = [unsigned(row) for row in range(rows)]
    for token in range(tokens):
        halves = [load(numbers, token, GROUP, start) for start in (0, 64)]
        start, scale = load(shift, token, 4 * LANES), spread(load(x_scales, token, 4, kind=F32))
        for row in range(rows):
            sums = start
            for part, half in zip(matrix[row], halves, strict=True):
                sums = builder.call(dot, [sums, part, half])
            factor = scale if bits == 8 else builder.fmul(scale, spread(load(scales, row, 4, kind=F32)))
            total = totals[row][token]
            total.add_incoming(number(FLOATS, [0.0] * LANES), before)
            total.add_incoming(builder.call(fma, [builder.sitofp(sums, FLOATS), factor, total]), loop)
    following = builder.add(group, number(I64, 1))
    group.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, groups), loop, after)
    builder.position_at_end(after)
    _store_sums(builder, [[total.incomings[1][0] for total in row] for row in totals], out, stride)
    builder.ret_void()


def _prefetch(builder, pointer):
    """Fetch a cache line for reading, to the second level of the cache."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, *(ir.Constant(I32, number) for number in (0, 2, 1))])


def _store_sums(builder, totals, out, stride):
    """Store the sum of the lanes of each row's and token's total; stride: bytes between tokens."""
    for row, own in enumerate(totals):
        for token, total in enumerate(own):
            place = builder.add(out, ir.Constant(I64, 4 * row))
            place = builder.add(place, builder.mul(stride, ir.Constant(I64, token)))
            builder.store(_lanes_sum(builder, total), builder.inttoptr(place, F32.as_pointer()))


def _lanes_sum(builder, vector):
    """Add the lanes of a vector, halves first."""
    for lanes in (8, 4, 2, 1):
        halves = [ir.Constant(ir.VectorType(I32, lanes), [*range(first, first + lanes)]) for first in (0, lanes)]
        low, high = (builder.shuffle_vector(vector, vector, half) for half in halves)
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))


def _rows(bits, rows):
    """Make the product of so many rows with any number of tokens, whose quantized x follow each other."""
    four, two, one = (_block(bits, rows, tokens) for tokens in (4, 2, 1))

    @njit(**fn.FAST)
    def multiply(weights, scales, numbers, x_scales, shift, groups, out, stride, tokens):
        token = 0
        while token < tokens:
            place = token * groups
            x, own, added = numbers + place * GROUP, x_scales + place * 4, shift + place * 4 * LANES
            to = out + token * stride
            if tokens - token >= 4:
                four(weights, scales, x, own, added, groups, to, stride)
                token += 4
            elif tokens - token >= 2:
                two(weights, scales, x, own, added, groups, to, stride)
                token += 2
            else:
                one(weights, scales, x, own, added, groups, to, stride)
                token += 1

    return multiply


_four8, _one8, _four4, _one4 = _rows(8, 4), _rows(8, 1), _rows(4, 4), _rows(4, 1)


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
def _quantize_all(x, start, count, bits, numbers, scales, shift):
    """Quantize so many numbers of each token of x from `start` on, one token behind the other."""
    groups = count // GROUP
    for token in range(len(x)):
        first, last = token * groups, (token + 1) * groups
        own = x[token][start : start + count]
        _quantize(own, bits, numbers[first * GROUP : last * GROUP], scales[first:last], shift[first:last])


@njit(**fn.FAST)
def _product(layout, first, last, numbers, scales, shift, groups, out, stride, tokens):
    """Multiply rows first to last of a matrix, (bits, weights, scales, bias), by the quantized x of all tokens.

    out: the address of the first token's results, of which first to last are written.   stride: bytes between tokens.
    """
    bits, weights, row_scales, bias = layout
    x, x_scales, shifts = fn.address_of(numbers), fn.address_of(scales), fn.address_of(shift)
    row = first
    while row < last:
        to = out + row * 4
        if bits == 8:
            at = weights + row * groups * GROUP
            if row + 4 <= last:
                _four8(at, np.int64(0), x, x_scales, shifts, groups, to, stride, tokens)
            else:
                _one8(at, np.int64(0), x, x_scales, shifts, groups, to, stride, tokens)
        else:
            at, own = weights + row * groups * (GROUP // 2), row_scales + row * groups * 4
            if row + 4 <= last:
                _four4(at, own, x, x_scales, shifts, groups, to, stride, tokens)
            else:
                _one4(at, own, x, x_scales, shifts, groups, to, stride, tokens)
        row += 4 if row + 4 <= last else 1
    for token in range(tokens):
        own = fn.float_view(out + token * stride, last)
        if bits == 8:
            factors = fn.float_view(row_scales, last)
            for row in range(first, last):
                own[row] *= factors[row]
        if bias:
            b = fn.float_view(bias, last)
            for row in range(first, last):
                own[row] += b[row]


@njit(**fn.FAST)
def _attend(tokens, layer, sizes, first, last, scale, scores, shared):
    """Write the keys and values of heads first to last of all tokens to their caches, then attend."""
    layers, heads, size = sizes
    hidden_size = heads * size
    for token in range(len(tokens)):
        address, room, at = tokens[token]
        cache = carray(fn.pointer(address), (layers, 2, heads, room, size), np.uint16)
        own = shared[token][2 * hidden_size :]
        for head in range(first, last):
            for word in range(2):
                start = (word + 1) * hidden_size + head * size
                for i in range(size):
                    cache[layer, word, head, at, i] = fn.to_bfloat16(own[start + i])
    for token in range(len(tokens)):
        address, room, at = tokens[token]
        cache = carray(fn.pointer(address), (layers, 2, heads, room, size), np.uint16)
        for head in range(first, last):
            q = shared[token][2 * hidden_size + head * size : 2 * hidden_size + (head + 1) * size]
            own = shared[token][head * size : (head + 1) * size]
            fn.attend(q, cache[layer, 0, head], cache[layer, 1, head], at + 1, scale, scores, own)


@fn.kernel(
    "void(int64, int64, int64[::1], float32[:, ::1], int64[:, ::1], int64[::1], int64[:, ::1], int64[::1], "
    "UniTuple(int64, 4), float32, float32, float32[:, ::1], float32[:, ::1])"
)
def step(thread, threads, counter, x, tokens, kept, layers, output, sizes, scale, eps, shared, logits):
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.   x: [tokens, hidden_size], embedded; unchanged.
    tokens: int64 [tokens, 3], of each (address of its row's cache, room, index). A cache is bfloat16 as uint16
    [layer, 2, heads, room, size]; keys and values are written at the index, and those up to it are attended to. Tokens
    of one row have indices that follow each other.
    kept: int64 [kept], the tokens whose logits are wanted.
    layers: int64 [layer, 24], (bits, weights, scales, bias) of query_key_value, output, input, output; (weight, bias)
    of the norms before and after attention, before and after the feed-forward. Addresses; 0 for what is missing.
    output: int64 [6], the same of the projection onto the vocabulary and of the last norm.
    sizes: (heads, size of a head, intermediate size, kind of activation as in `activate`).
    shared: float32 [tokens, 2 hidden_size + max(3 hidden_size, feed-forward)], shared by threads.
    logits: float32 [kept, vocab].
    """
    heads, size, inner, kind = sizes
    hidden_size, count = heads * size, len(x)
    x = x.copy()
    h = np.empty((count, hidden_size), np.float32)
    most = max(hidden_size, inner)
    numbers = np.empty(count * most, np.int8)
    scales = np.empty(count * most // GROUP, np.float32)
    shift = np.zeros((count * most // GROUP, LANES), np.int32)
    scores = np.empty(tokens[:, 2].max() + 1, np.float32)
    # Of each token in `shared`: attended, y, wide.
    stride = shared.shape[1] * 4
    y_at, wide_at = fn.address_of(shared) + hidden_size * 4, fn.address_of(shared) + 2 * hidden_size * 4
    groups = hidden_size // GROUP
    barriers = 0
    for layer in range(len(layers)):
        f = layers[layer]
        # Attention: queries, keys and values of this thread's heads, which no other thread needs.
        for token in range(count):
            fn.norm(x[token], f[16], f[17], eps, h[token])
        _quantize_all(h, np.int64(0), hidden_size, f[0], numbers, scales, shift)
        first, last = fn.share(heads, thread, threads)
        for word in range(3):
            rows = word * hidden_size + first * size, word * hidden_size + last * size
            _product(fn.matrix(f, 0), rows[0], rows[1], numbers, scales, shift, groups, wide_at, stride, count)
        _attend(tokens, layer, (len(layers), heads, size), first, last, scale, scores, shared)
        barriers = fn.barrier(counter, barriers, threads)
        _quantize_all(shared, np.int64(0), hidden_size, f[4], numbers, scales, shift)
        first, last = fn.share(hidden_size, thread, threads)
        _product(fn.matrix(f, 1), first, last, numbers, scales, shift, groups, y_at, stride, count)
        barriers = fn.barrier(counter, barriers, threads)
        for token in range(count):
            fn.add_norm(x[token], shared[token][hidden_size : 2 * hidden_size], f[18], f[19], eps)
            # Feed-forward.
            fn.norm(x[token], f[20], f[21], eps, h[token])
        _quantize_all(h, np.int64(0), hidden_size, f[8], numbers, scales, shift)
        first, last = fn.share(inner, thread, threads)
        _product(fn.matrix(f, 2), first, last, numbers, scales, shift, groups, wide_at, stride, count)
        for token in range(count):
            wide = shared[token][2 * hidden_size :]
            for i in range(first, last):
                wide[i] = fn.activate(wide[i], kind)
        barriers = fn.barrier(counter, barriers, threads)
        _quantize_all(shared, 2 * hidden_size, inner, f[12], numbers, scales, shift)
        first, last = fn.share(hidden_size, thread, threads)
        _product(fn.matrix(f, 3), first, last, numbers, scales, shift, inner // GROUP, y_at, stride, count)
        barriers = fn.barrier(counter, barriers, threads)
        for token in range(count):
            fn.add_norm(x[token], shared[token][hidden_size : 2 * hidden_size], f[22], f[23], eps)
    for place in range(len(kept)):
        fn.norm(x[kept[place]], output[4], output[5], eps, h[place])
    _quantize_all(h[: len(kept)], np.int64(0), hidden_size, output[0], numbers, scales, shift)
    first, last = fn.share(logits.shape[1], thread, threads)
    out, stride = fn.address_of(logits), logits.shape[1] * 4
    _product(fn.matrix(output, 0), first, last, numbers, scales, shift, groups, out, stride, len(kept))
    fn.barrier(counter, barriers, threads)
