"""Matrices quantized to 8 bits in a safetensors file, and the reader that returns them as float32.

    NAME        int8 [out, in]       w ≈ scale · q,  -127 ≤ q ≤ 127, one scale for each row
    NAME.scale  float32 [out, 1]

Knows no network; reads without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from hanmo.checkpoint.source import Array, Item, Source, TensorInfo, storage_bytes
from hanmo.errors import CorruptFile

if TYPE_CHECKING:
    from torch import Tensor

MARK = {"hanmo": "int8"}
"""Metadata in the header of such a file."""
_SCALE = ".scale"


def scales_int8(weights: Tensor) -> Tensor:
    """Choose a scale for each output of [out, in]: [out, 1]."""
    return nonzero(weights.abs().amax(1, keepdim=True) / 127)


def round_int8(weights: Tensor, scales: Tensor) -> Tensor:
    """Round [out, in] to int8."""
    return (weights / scales).round_().clamp_(-127, 127).char()


def nonzero(scale: Tensor) -> Tensor:
    """Replace scales of 0 by the smallest that can be divided by."""
    return scale.masked_fill(scale.abs() < 1e-30, 1e-30)


def rounded_items(state: Mapping[str, Tensor]) -> Iterator[Item]:
    """Yield the tensors of a file: matrices quantized, with their scales; all others as float32."""

    def made(convert: Callable[[Tensor], Tensor], weights: Tensor) -> Iterator[Array]:
        yield convert(weights.float()).numpy()

    for name, parameter in state.items():
        weights = parameter.detach().cpu()
        size, shape = weights.numel(), tuple(weights.shape)
        if weights.ndim != 2:
            yield name, (TensorInfo(name, "float32", shape, 4 * size), made(lambda w: w.contiguous(), weights))
            continue
        yield name, (TensorInfo(name, "int8", shape, size), made(lambda w: round_int8(w, scales_int8(w)), weights))
        scale, rows = name + _SCALE, shape[0]
        yield scale, (TensorInfo(scale, "float32", (rows, 1), 4 * rows), made(scales_int8, weights))


class Quantized(Source):
    """A source whose quantized matrices are read as float32.

    Raises CorruptFile if a matrix lacks its scales or has others.
    """

    def __init__(self, inner: Source) -> None:
        self._inner, self.path = inner, inner.path
        tensors: dict[str, TensorInfo] = {}
        for name, info in inner.tensors.items():
            if info.dtype == "int8":
                scale = inner.tensors.get(name + _SCALE)
                if scale is None or (scale.dtype, scale.shape) != ("float32", (*info.shape[:1], 1)):
                    found = "none" if scale is None else f"{scale.dtype}{list(scale.shape)}"
                    raise CorruptFile(
                        f"{self.path}: {name} is int8{list(info.shape)} and its scales are {found}; "
                        f"expected {name}{_SCALE} of float32{[*info.shape[:1], 1]}; download or copy the file again"
                    )
                info = TensorInfo(name, "float32", info.shape, storage_bytes("float32", info.shape))
            if not name.endswith(_SCALE) or name.removesuffix(_SCALE) not in inner.tensors:
                tensors[name] = info
        self.tensors = tensors
        self.in_file_order = [name for name in inner.in_file_order if name in tensors]

    def read(self, name: str) -> Array:
        found = self._inner.read(name)
        return found if found.dtype != np.int8 else found.astype(np.float32) * self._inner.read(name + _SCALE)

    def release(self, name: str) -> None:
        self._inner.release(name)

    def close(self) -> None:
        self._inner.close()
