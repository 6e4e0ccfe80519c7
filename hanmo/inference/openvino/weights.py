"""The OpenVINO engine's file of weights: a mapped safetensors file whose tensors become graph constants.

    NAME.weight        float32, bfloat16, int8 [out, in], or int4 two in a byte [out, in / 2], low half first
    NAME.weight.scale  float32 [out, 1] of int8, or [out, groups] of int4
    NAME.bias          float32, as everything that is not a matrix

Quantized matrices and scales of a model that has the fused step are in its order: see hanmo/inference/fused/packing.py.
A graph then has its own copies.

Knows the file and the patterns that OpenVINO's CPU plugin recognises as compressed matrices. Knows no network.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset15 as op

from hanmo.checkpoint.safetensors import Safetensors
from hanmo.checkpoint.source import Array
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, CorruptFile
from hanmo.inference.fused.packing import LANES, unpack_int4, unpack_int8, unpack_scales

__all__ = ["FORMAT", "KINDS", "Node", "Weights"]

FORMAT = "3"
"""Incremented whenever files of earlier versions would be read wrongly."""

KINDS = ("float32", "bfloat16", "int8", "int4")

VOCABULARY = ("token.weight", "output.weight")  # whose rows need not fill the last block

Node: TypeAlias = Any


class Weights:
    """An open file of weights; the constants of a graph share its pages.

    packed: whether matrices are in the order of the fused step.   Raises MissingFile or CorruptFile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Safetensors(path)
        words = self._file.metadata
        if words.get("format") != FORMAT or words.get("weights") not in KINDS:
            raise CorruptFile(f"{path} is not a file of the engine; clear the cache with 'hanmo cache --clear'")
        self.kind = words["weights"]
        try:
            self.config, self.source = ModelConfig.from_json(words["config"]), words["source"]
        except (KeyError, ConfigError) as error:
            raise CorruptFile(f"{path} does not say what it holds ({error}); clear the cache") from None
        self.packed = len(self._file.tensors["token.weight"].shape) > 2
        self._made: dict[str, Node] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    def array(self, name: str) -> Array:
        """Give a tensor as stored; it shares the file's pages."""
        return self._file.read(name)

    def constant(self, name: str) -> Node:
        """Make the constant of a tensor as stored."""
        return self._once(name, lambda: self._constant(name))

    def linear(self, x: Node, name: str) -> Node:
        """Multiply x [..., in] by a matrix [out, in] and add its bias, if it has one."""
        y = self.product(x, f"{name}.weight")
        return op.add(y, self.constant(f"{name}.bias")) if f"{name}.bias" in self else y

    def product(self, x: Node, name: str) -> Node:
        """Multiply x [..., in] by a matrix [out, in], in a pattern that keeps it compressed."""
        matrix = self._once(f"{name} as a matrix", lambda: self._matrix(name))
        if self._file.tensors[name].dtype == "bfloat16":
            # A constant converted to float32 would be folded, and stored so, when compiling.
            return op.convert(op.matmul(op.convert(x, "bf16"), matrix, False, True), "f32")
        return op.matmul(x, matrix, False, True)

    def rows(self, name: str, ids: Node) -> Node:
        """Look up rows of a table; only those are converted to float32."""
        found, scale = op.gather(self.constant(name), ids, 0), f"{name}.scale"
        if self._file.tensors[name].dtype != "float32":
            found = op.convert(found, "f32")
        return op.multiply(found, op.gather(self.constant(scale), ids, 0)) if scale in self else found

    def _matrix(self, name: str) -> Node:
        stored, scale = self.constant(name), f"{name}.scale"
        if scale not in self:
            return stored
        wide = op.convert(stored, "f32")
        if self._file.tensors[name].dtype == "int8":
            return op.multiply(wide, self.constant(scale))
        rows, groups, size = stored.shape
        scaled = op.multiply(wide, op.constant(self._unpacked(scale)[..., None]))
        return op.reshape(scaled, [rows, groups * size], False)

    def _constant(self, name: str) -> Node:
        info = self._file.tensors[name]
        value: Any = self._unpacked(name)
        if info.dtype == "bfloat16":
            value = ov.Tensor(value, ov.Shape(info.shape), ov.Type.bf16)
        elif info.dtype == "uint8":
            rows, groups = self._unpacked(f"{name}.scale").shape
            value = ov.Tensor(value, ov.Shape([rows, groups, 2 * value.shape[1] // groups]), ov.Type.i4)
        return op.constant(value, shared_memory=not self.packed)

    def _unpacked(self, name: str) -> Array:
        """Give a tensor with its outputs first, [out, …]; one that is packed is copied."""
        value, matrix = self.array(name), name.removesuffix(".scale")
        if not self.packed or f"{matrix}.scale" not in self:
            return value
        rows = self.config.vocab_size if matrix in VOCABULARY else len(value) * LANES
        if matrix != name:
            return unpack_scales(value, rows)
        return unpack_int8(value, rows) if value.dtype == np.int8 else unpack_int4(value, rows)

    def _once(self, name: str, make: Callable[[], Node]) -> Node:
        """Make a node when it is first needed, so that layers that share weights share constants."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]
