"""Functions in LLVM IR that Numba's functions call: a builder with what the blocks of the quantized step need."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hanmo.inference.fused.packing import LANES
from hanmo.inference.fused.support import instructions

__all__ = ["BYTES", "F32", "FLOATS", "I8", "I32", "I64", "INTS", "Code", "function"]

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
BYTES = I8.as_pointer()


class Code:
    """Writes the code of one function."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.builder, name)

    def number(self, value: int) -> ir.Constant:
        """Make an int64."""
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
        """Load a value, aligned to 4 bytes."""
        loaded = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        loaded.align = 4
        return loaded

    def store(self, value: Any, address: Any) -> None:
        """Store a value, aligned to 4 bytes."""
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
        """Compute a b + c, rounded once."""
        return self.call_intrinsic("llvm.fma.v16f32", FLOATS, a, b, c)

    def call_intrinsic(self, name: str, kind: ir.Type, *args: Any) -> Any:
        """Call one of LLVM's intrinsics that returns this type."""
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


def function(name: str, build: Callable[..., None], *, tiles: bool = False) -> Any:
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
            code = Code(ir.IRBuilder(function.append_basic_block()))
            if not tiles or instructions() == "amx":
                build(code, *function.args)
            code.ret_void()
        builder.call(function, given)
        return context.get_dummy_value()

    return intrinsic(lambda context, given: (types.void(given), generate))
