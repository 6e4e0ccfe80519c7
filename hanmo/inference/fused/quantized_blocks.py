"""Blocks of the quantized step in LLVM IR: products with int8 or int4 weights, and the quantization of their inputs.

For x86 processors. Knows addresses and numbers of bytes. A product's sums of integers are exact, and its sums of floats
are added in the order of the groups, so its results depend neither on the instructions nor on the number of tokens.

    weights   int8 [outputs / 16, inputs / 4, 16, 4], or int4 [outputs / 16, inputs / 8, 16, 4], 8 added, two in a byte:
              of each 8 inputs the first 4 in the low halves, the others in the high halves
    scales    float32 [outputs / 16, groups or 1, 16]
    bias      float32 [outputs / 16, 16]
"""

from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from hanmo.inference.fused.dot import dot
from hanmo.inference.fused.llvm_code import BYTES, F32, FLOATS, I8, I32, I64, INTS, Code, function
from hanmo.inference.fused.packing import BETWEEN, GROUP, LANES, NARROW
from hanmo.inference.fused.support import instructions

__all__ = ["amx", "product", "quantize", "quantize_narrow", "tiles", "unpack"]

SCALES, TILE = 4 * LANES, 1024  # bytes of a vector of scales, of a tile of 16 outputs and 64 inputs


def _finish(code: Code, totals: list[Any], bits: int, scales: Any, bias: Any, out: Any, stride: Any) -> None:
    """Store the totals of each token; those of int8 are multiplied by their scales first."""
    added = code.load(FLOATS, bias)
    for token, total in enumerate(totals):
        y = code.builder.load(total)
        y = code.fma(y, code.load(FLOATS, scales), added) if bits == 8 else code.fadd(y, added)
        code.store(y, code.at(out, (token, stride)))


def _add(code: Code, total: Any, sums: Any, scale: Any, weight_scales: Any | None) -> None:
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
    numbers: int8 [tokens, inputs + BETWEEN].   x_scales: float32 [tokens, groups].   shift: int32 [tokens, groups].
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
                        x = code.at(
                            numbers, (groups, group_size * token), BETWEEN * token, (group, group_size), 4 * number
                        )
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

    return function(f"hanmo_{name}_{bits}_{tokens}_{group_size}", build)


AHEAD = 4096  # bytes from what is multiplied to what is fetched


def amx(bits: int, tokens: int) -> Any:
    """Multiply 16 outputs by so many tokens, at most 16, in tiles; 4-bit weights are given as int8.

    Called as `product`, with the address of 8 KiB of scratch, and the bytes to weights that are prefetched, or 0.
    16 tokens are read. Sums are stored at the weights' place in a page: a load from there would wait for the store.
    """

    def build(code, weights, scales, bias, numbers, x_scales, _, groups, out, stride, scratch, ahead):
        totals = code.variables(tokens)
        row = code.at(code.builder.mul(groups, code.number(GROUP)), BETWEEN)
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

    return function(f"hanmo_amx_{bits}_{tokens}", build, tiles=True)


def _unpack(code, packed, size, out, ahead):
    """Convert so many bytes of two 4-bit numbers to int8, and prefetch as many behind them."""
    with cgutils.for_range(code.builder, code.udiv(size, code.number(64))) as loop:
        code.prefetch(code.at(packed, (loop.index, 64), ahead))
        for half, numbers in enumerate(_numbers(code, 4, code.at(packed, (loop.index, 64)))):
            own = code.builder.sub(
                code.bitcast(numbers, ir.VectorType(I8, 64)), ir.Constant(ir.VectorType(I8, 64), [8] * 64)
            )
            code.store(own, code.at(out, (loop.index, 128), 64 * half))


def _numbers(code: Code, bits: int, address: Any) -> list[Any]:
    """Load a cache line of weights: vectors of unsigned bytes, 128 or 8 more than the numbers."""
    line = code.load(INTS, address)
    if bits == 8:
        return [code.xor(line, ir.Constant(INTS, [0x80808080 - (1 << 32)] * LANES))]
    low = ir.Constant(INTS, [0x0F0F0F0F] * LANES)
    return [code.and_(line, low), code.and_(code.lshr(line, ir.Constant(INTS, [4] * LANES)), low)]


unpack = function("hanmo_unpack", _unpack)


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


quantize, quantize_narrow = (function(f"hanmo_quantize_{size}", partial(_quantize, size)) for size in (GROUP, NARROW))
tiles = tuple(function(f"hanmo{build.__name__}", build, tiles=True) for build in (_configure, _release))
