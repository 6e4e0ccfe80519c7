"""Sums of products of bytes in LLVM IR, by the instructions of each processor; all give the same integers."""

from typing import Any

from llvmlite import ir

from hanmo.inference.fused.packing import LANES

__all__ = ["dot"]


def dot(code: Any, chosen: str, bits: int, sums: Any, weights: Any, x: Any) -> Any:
    """Add to 16 sums the products of 4 unsigned bytes of weights each with 4 signed bytes, exactly.

    code: a builder with `call_intrinsic`.   sums, weights, x: vectors of 16 int32.
    chosen: "vnni"; "avx512" and "avx2" multiply pairs of 16-bit numbers, in one vector or in two halves.
    """
    if chosen == "vnni":
        return code.call_intrinsic("llvm.x86.avx512.vpdpbusd.512", sums.type, sums, weights, x)
    lanes, by_words, by_bytes = {
        "avx512": (16, "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx512.pmaddubs.w.512"),
        "avx2": (8, "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.pmadd.ub.sw"),
    }[chosen]
    ints, words, numbers = (ir.VectorType(ir.IntType(size), 32 // size * lanes) for size in (32, 16, 8))
    byte = ir.Constant(words, [8] * 2 * lanes)

    def times(a: Any, b: Any) -> Any:
        return code.call_intrinsic(by_words, ints, a, b)

    def part(first: int) -> Any:
        w, y = (code.shuffle_vector(each, each, _lanes(first, lanes)) for each in (weights, x))
        if bits == 4:  # two products of at most 15 and 127 fit 16 bits
            pairs = code.call_intrinsic(by_bytes, words, code.bitcast(w, numbers), code.bitcast(y, numbers))
            return times(pairs, ir.Constant(words, [1] * 2 * lanes))
        w, y = code.bitcast(w, words), code.bitcast(y, words)
        even = times(code.and_(w, ir.Constant(words, [255] * 2 * lanes)), code.ashr(code.shl(y, byte), byte))
        return code.builder.add(even, times(code.lshr(w, byte), code.ashr(y, byte)))

    parts = [part(first) for first in range(0, LANES, lanes)]
    return code.builder.add(sums, code.shuffle_vector(parts[0], parts[-1], _lanes(0, LANES)))


def _lanes(first: int, count: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), count), [*range(first, first + count)])
