"""Blocks of the quantized step's attention in LLVM IR: products with keys, the largest of them, sums of values.

For x86 processors. Knows addresses and numbers of bytes.

    keys      bfloat16 [tokens / 16, size / 2, 16, 2]
    values    bfloat16 [tokens / 2, size, 2]
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hanmo.inference.fused.llvm_code import F32, FLOATS, INTS, Code, function
from hanmo.inference.fused.packing import LANES

__all__ = ["largest", "mix", "scores"]


@intrinsic
def largest(context, address, vectors):
    """Return the largest of 16 float32 times so many, at least 1, at an address."""

    def generate(context, builder, signature, args):
        code = Code(builder)
        most = cgutils.alloca_once_value(builder, code.load(FLOATS, args[0]))
        with cgutils.for_range_slice(builder, code.number(1), args[1], code.number(1)) as (index, _):
            found = code.load(FLOATS, code.at(args[0], (index, 4 * LANES)))
            builder.store(code.call_intrinsic("llvm.maxnum.v16f32", FLOATS, found, builder.load(most)), most)
        return code.across(builder.load(most), lambda a, b: code.select(code.fcmp_ordered(">", a, b), a, b))

    return types.float32(types.int64, types.int64), generate


def _halves(code: Code, address: Any) -> list[Any]:
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

    return function(f"hanmo_scores_{tokens}", build)


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

    return function(f"hanmo_mix_{tokens}_{vectors}", build)
