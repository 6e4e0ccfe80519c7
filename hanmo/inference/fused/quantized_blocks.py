"""Blocks of the quantized step in LLVM IR: products with int8 or int4 weights, scores and sums of attention.

For x86 processors. Knows addresses and numbers of bytes. A product's sums of integers are exact, and its sums of floats
are added in the order of the groups, so its results depend neither on the instructions nor on the number of tokens.

    weights   int8 [outputs / 16, inputs / 4, 16, 4], or int4 [outputs / 16, inputs / 8, 16, 4], 8 added, two in a byte:
              of each 8 inputs the first 4 in the low halves, the others in the high halves
    scales    float32 [outputs / 16, groups or 1, 16]
    bias      float32 [outputs / 16, 16]
    keys      bfloat16 [tokens / 16, size / 2, 16, 2]
    values    bfloat16 [tokens / 2, size, 2]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hanmo.inference.fused.dot import dot
from hanmo.inference.fused.packing import GROUP, LANES, NARROW
from hanmo.inference.fused.support import instructions

__all__ = ["amx", "mix", "product", "quantize", "quantize_narrow", "scores", "tiles", "unpack"]

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
BYTES = I8.as_pointer()
SCALES, TILE = 4 * LANES, 1024  # bytes of a vector of scales, of a tile of 16 outputs and 64 inputs


class _Code:
    """Writes the code of one function."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.builder, name)

    def number(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def at(self, address: Any, *offsets: Any) -> Any:
        """Add offsets: bytes, or (count, bytes)."""
        for offset in offsets:
            if isinstance(offset, tuple):
                count, size = (self.number(each) if isinstance(each, int) else each for each in offset)
                offset = self.builder.mul(count, size)
            address = self.builder.add(address, self.number(offset) if isinstance(offset, int) else offset)
        return address

    def load(self, kind: ir.Type, address: Any) -> Any:
        loaded = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        loaded.align = 4
        return loaded

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = 4

    def spread(self, scalar: Any) -> Any:
        """Repeat a scalar in all lanes."""
        kind = ir.VectorType(scalar.type, LANES)
        vector = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(vector, vector, ir.Constant(INTS, [0] * LANES))

    def across(self, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """Combine all lanes of a vector, halves first."""
        for lanes in (8, 4, 2, 1):
            low, high = (
                self.builder.shuffle_vector(
                    vector, vector, ir.Constant(ir.VectorType(I32, lanes), [*range(at, at + lanes)])
                )
                for at in (0, lanes)
            )
            vector = combine(low, high)
        return self.builder.extract_element(vector, ir.Constant(I32, 0))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.call_intrinsic("llvm.fma.v16f32", FLOATS, a, b, c)

    def call_intrinsic(self, name: str, kind: ir.Type, *args: Any) -> Any:
        function_type = ir.FunctionType(kind, [arg.type for arg in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function_type, name), args)

    def prefetch(self, address: Any) -> None:
        """Fetch a cache line for reading, to the second level of the cache."""
        flags = (ir.Constant(I32, value) for value in (0, 2, 1))
        self.call_intrinsic("llvm.prefetch.p0", ir.VoidType(), self.builder.inttoptr(address, BYTES), *flags)

    def variables(self, count: int, kind: ir.Type = FLOATS) -> list[Any]:
        """Make variables that begin as 0."""
        made = [self.builder.alloca(kind) for _ in range(count)]
        for each in made:
            self.builder.store(ir.Constant(kind, None), each)
        return made


def _function(name: str, build: Callable[..., None], *, tiles: bool = False) -> Any:
    """Make a function of addresses and counts, given as one tuple of int64, from a writer of its code.

    tiles: it needs AMX, and is empty elsewhere.
    """

    def generate(context, builder, signature, args):
        given = cgutils.unpack_tuple(builder, args[0])
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(given))
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, kind, name)
            function.linkage = "linkonce_odr"
            function.attributes.add("noinline")
            code = _Code(ir.IRBuilder(function.append_basic_block()))
            if not tiles or instructions() == "amx":
                build(code, *function.args)
            code.ret_void()
        builder.call(function, given)
        return context.get_dummy_value()

    return intrinsic(lambda context, given: (types.void(given), generate))


def _finish(code: _Code, totals: list[Any], bits: int, scales: Any, bias: Any, out: Any, stride: Any) -> None:
    """Store the totals of each token; those of int8 are multiplied by their scales first."""
    added = code.load(FLOATS, bias)
    for token, total in enumerate(totals):
        y = code.builder.load(total)
        y = code.fma(y, code.load(FLOATS, scales), added) if bits == 8 else code.fadd(y, added)
        code.store(y, code.at(out, (token, stride)))


def _add(code: _Code, total: Any, sums: Any, scale: Any, weight_scales: Any | None) -> None:
    """Add the sums of a group, times its scales, to a total."""
    factor = code.spread(code.load(F32, scale))
    if weight_scales is not None:
        factor = code.fmul(factor, weight_scales)
    code.builder.store(code.fma(code.sitofp(sums, FLOATS), factor, code.builder.load(total)), total)


def product(bits: int, tokens: int, group_size: int, chosen: str | None = None) -> Any:
    """Multiply 16 outputs by so many tokens, in registers.

    group_size: inputs that share a scale.   chosen: the instructions, see `dot`; None takes the best that may be used.
    Called with addresses (weights, scales, bias, numbers, x_scales, shift), the number of groups, the address of the
    first token's results, and the bytes from one token's results to the next one's.
    numbers: int8 [tokens, inputs].   x_scales: float32 [tokens, groups].   shift: int32 [tokens, groups].
    """
    best = chosen or instructions() or "avx2"
    name = "vnni" if best == "amx" else best
    chains = max(1, 4 // tokens)  # sums that do not wait for each other

    def build(code, weights, scales, bias, numbers, x_scales, shift, groups, out, stride):
        totals = code.variables(tokens)
        size = group_size * LANES * bits // 8
        with cgutils.for_range(code.builder, groups) as loop:
            group = loop.index
            own = code.at(weights, (group, size))
            sums = [[ir.Constant(INTS, None)] * chains for _ in range(tokens)]
            for token in range(tokens):
                sums[token][0] = code.spread(code.load(I32, code.at(shift, (groups, 4 * token), (group, 4))))
            for place in range(0, size, 64):
                code.prefetch(code.at(own, place + AHEAD))
                quads = _numbers(code, bits, code.at(own, place))
                for each, quad in enumerate(quads):
                    number = place // 64 * len(quads) + each
                    for token in range(tokens):
                        x = code.at(numbers, (groups, group_size * token), (group, group_size), 4 * number)
                        chain = number % chains
                        spread = code.spread(code.load(I32, x))
                        sums[token][chain] = dot(code, name, bits, sums[token][chain], quad, spread)
            weight_scales = code.load(FLOATS, code.at(scales, (group, SCALES))) if bits == 4 else None
            for token in range(tokens):
                total = sums[token][0]
                for other in sums[token][1:]:
                    total = code.builder.add(total, other)
                scale = code.at(x_scales, (groups, 4 * token), (group, 4))
                _add(code, totals[token], total, scale, weight_scales)
        _finish(code, totals, bits, scales, bias, out, stride)

    return _function(f"hanmo_{name}_{bits}_{tokens}_{group_size}", build)


AHEAD = 4096  # bytes from what is multiplied to what is fetched


def amx(bits: int, tokens: int) -> Any:
    """Multiply 16 outputs by so many tokens, at most 16, in tiles; 4-bit weights are given as int8.

    Called as `product`, with the address of 8 KiB of scratch, and the bytes to weights that are prefetched, or 0.
    16 tokens are read. Sums are stored at the weights' place in a page: a load from there would wait for the store.
    """

    def build(code, weights, scales, bias, numbers, x_scales, _, groups, out, stride, scratch, ahead):
        totals = code.variables(tokens)
        row = code.builder.mul(groups, code.number(GROUP))
        void, pointer = ir.VoidType(), lambda address: code.inttoptr(address, BYTES)
        sums, x, w = (ir.Constant(I8, tile) for tile in range(3))
        with cgutils.for_range(code.builder, groups) as loop:
            group = loop.index
            own = code.at(weights, (group, GROUP * LANES))
            kept = code.at(scratch, code.and_(own, code.number(4095)))
            with code.if_then(code.icmp_signed("!=", ahead, code.number(0))):
                for place in range(0, GROUP * LANES, 64):
                    code.prefetch(code.at(own, ahead, place))
            code.call_intrinsic("llvm.x86.tilezero", void, sums)
            for half in range(GROUP // 64):
                read = pointer(code.at(numbers, (group, GROUP), 64 * half))
                code.call_intrinsic("llvm.x86.tileloadd64", void, x, read, row)
                read = pointer(code.at(own, TILE * half))
                code.call_intrinsic("llvm.x86.tileloadd64", void, w, read, code.number(64))
                code.call_intrinsic("llvm.x86.tdpbssd", void, sums, x, w)
            code.call_intrinsic("llvm.x86.tilestored64", void, sums, pointer(kept), code.number(64))
            weight_scales = code.load(FLOATS, code.at(scales, (group, SCALES))) if bits == 4 else None
            for token in range(tokens):
                scale = code.at(x_scales, (groups, 4 * token), (group, 4))
                _add(code, totals[token], code.load(INTS, code.at(kept, 64 * token)), scale, weight_scales)
        _finish(code, totals, bits, scales, bias, out, stride)

    return _function(f"hanmo_amx_{bits}_{tokens}", build, tiles=True)


def _unpack(code, packed, size, out, ahead):
    """Convert so many bytes of two 4-bit numbers to int8, and prefetch as many behind them."""
    with cgutils.for_range(code.builder, code.udiv(size, code.number(64))) as loop:
        code.prefetch(code.at(packed, (loop.index, 64), ahead))
        for half, numbers in enumerate(_numbers(code, 4, code.at(packed, (loop.index, 64)))):
            own = code.builder.sub(
                code.bitcast(numbers, ir.VectorType(I8, 64)), ir.Constant(ir.VectorType(I8, 64), [8] * 64)
            )
            code.store(own, code.at(out, (loop.index, 128), 64 * half))


def _numbers(code: _Code, bits: int, address: Any) -> list[Any]:
    """Load a cache line of weights: vectors of unsigned bytes, 128 or 8 more than the numbers."""
    line = code.load(INTS, address)
    if bits == 8:
        return [code.xor(line, ir.Constant(INTS, [0x80808080 - (1 << 32)] * LANES))]
    low = ir.Constant(INTS, [0x0F0F0F0F] * LANES)
    return [code.and_(line, low), code.and_(code.lshr(line, ir.Constant(INTS, [4] * LANES)), low)]


unpack = _function("hanmo_unpack", _unpack)


def _configure(code, address):
    code.call_intrinsic("llvm.x86.ldtilecfg", ir.VoidType(), code.inttoptr(address, BYTES))


def _release(code, _):
    code.call_intrinsic("llvm.x86.tilerelease", ir.VoidType())


def _quantize(size, code, x, groups, zero, numbers, scales, shift):
    """Quantize float32 to int8 in groups of a size.   shift: what unsigned weights add, -`zero` times a group's sum."""
    vectors = size // LANES
    top = ir.Constant(F32, 127.0)
    with cgutils.for_range(code.builder, groups) as loop:
        parts = [code.load(FLOATS, code.at(x, (loop.index, 4 * size), 4 * LANES * part)) for part in range(vectors)]
        most = [code.call_intrinsic("llvm.fabs.v16f32", FLOATS, part) for part in parts]
        while len(most) > 1:
            most = [
                code.call_intrinsic("llvm.maxnum.v16f32", FLOATS, *pair) for pair in zip(*[iter(most)] * 2, strict=True)
            ]
        largest = code.across(most[0], lambda a, b: code.select(code.fcmp_ordered(">", a, b), a, b))
        code.store(code.fdiv(largest, top), code.at(scales, (loop.index, 4)))
        nothing = code.fcmp_ordered("==", largest, ir.Constant(F32, 0.0))
        factor = code.spread(code.select(nothing, ir.Constant(F32, 0.0), code.fdiv(top, largest)))
        total = ir.Constant(INTS, None)
        for part, own in enumerate(parts):
            near = code.fptosi(code.call_intrinsic("llvm.rint.v16f32", FLOATS, code.fmul(own, factor)), INTS)
            total = code.builder.add(total, near)
            place = code.at(numbers, (loop.index, size), LANES * part)
            code.store(code.trunc(near, ir.VectorType(I8, LANES)), place)
        total = code.sext(code.across(total, code.builder.add), I64)
        code.store(code.trunc(code.builder.mul(total, zero), I32), code.at(shift, (loop.index, 4)))


quantize, quantize_narrow = (_function(f"hanmo_quantize_{size}", partial(_quantize, size)) for size in (GROUP, NARROW))
tiles = tuple(_function(f"hanmo{build.__name__}", build, tiles=True) for build in (_configure, _release))


def _halves(code: _Code, address: Any) -> list[Any]:
    """Load 16 pairs of bfloat16: the first and the second of each, as float32."""
    pairs = code.load(INTS, address)
    first = code.shl(pairs, ir.Constant(INTS, [16] * LANES))
    second = code.and_(pairs, ir.Constant(INTS, [-65536] * LANES))
    return [code.bitcast(each, FLOATS) for each in (first, second)]


def scores(tokens: int) -> Any:
    """Multiply keys by the queries of so many tokens.

    Called with addresses (keys, queries), the bytes from one query to the next, size / 2, the number of blocks of 16
    keys, the address of the scores, float32 [tokens, keys], and the bytes from one token's to the next one's.
    """

    def build(code, keys, queries, q_stride, pairs, blocks, out, stride):
        totals = code.variables(2 * tokens)
        with cgutils.for_range(code.builder, blocks) as loop:
            own = code.at(keys, (code.builder.mul(loop.index, pairs), 4 * LANES))
            for total in totals:
                code.builder.store(ir.Constant(FLOATS, None), total)
            with cgutils.for_range(code.builder, pairs) as inner:
                halves = _halves(code, code.at(own, (inner.index, 4 * LANES)))
                for token in range(tokens):
                    for place, half in enumerate(halves):
                        q = code.spread(
                            code.load(F32, code.at(queries, (token, q_stride), (inner.index, 8), 4 * place))
                        )
                        total = totals[2 * token + place]
                        code.builder.store(code.fma(half, q, code.builder.load(total)), total)
            for token in range(tokens):
                first, second = (code.builder.load(totals[2 * token + place]) for place in range(2))
                code.store(code.fadd(first, second), code.at(out, (token, stride), (loop.index, 4 * LANES)))

    return _function(f"hanmo_scores_{tokens}", build)


def mix(tokens: int, vectors: int) -> Any:
    """Sum values by the weights of so many tokens, of 16 times so many numbers of each.

    Called with addresses (values, weights), the bytes from one token's weights to the next one's, the bytes from two
    tokens' values to the next two's, the number of pairs of values, the address of the sums, and their stride.
    """

    def build(code, values, weights, w_stride, v_stride, pairs, out, stride):
        totals = code.variables(tokens * vectors)
        with cgutils.for_range(code.builder, pairs) as loop:
            for vector in range(vectors):
                halves = _halves(code, code.at(values, (loop.index, v_stride), 4 * LANES * vector))
                for token in range(tokens):
                    total = totals[token * vectors + vector]
                    for place, half in enumerate(halves):
                        weight = code.at(weights, (token, w_stride), (loop.index, 8), 4 * place)
                        y = code.fma(half, code.spread(code.load(F32, weight)), code.builder.load(total))
                        code.builder.store(y, total)
        for token in range(tokens):
            for vector in range(vectors):
                y = code.builder.load(totals[token * vectors + vector])
                code.store(y, code.at(out, (token, stride), 4 * LANES * vector))

    return _function(f"hanmo_mix_{tokens}_{vectors}", build)
