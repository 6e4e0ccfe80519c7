"""Convert a checkpoint to the file of weights that the OpenVINO engine maps, tensor by tensor, quantized on the way.

Knows how names are joined and how int4 is rounded. The one part of the engine that needs torch, and only to build.

    int8   a scale for each output:                  w ≈ scale · q,  -127 ≤ q ≤ 127
    int4   a scale for each 128 inputs of an output: w ≈ scale · q,    -8 ≤ q ≤ 7    (of 32 where 128 do not divide)
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from hanmo.checkpoint.load import as_tensor
from hanmo.checkpoint.match import plan
from hanmo.checkpoint.names import import_row
from hanmo.checkpoint.open import Location, open_source
from hanmo.checkpoint.quantized import nonzero, round_int8, scales_int8
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.shapes import TASK_HEAD
from hanmo.checkpoint.source import Array, Item, Source, TensorInfo, storage_bytes
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, TensorMismatch
from hanmo.families import Row
from hanmo.inference.fused.packing import LANES, group_size, pack_int4, pack_int8, pack_scales
from hanmo.inference.fused.support import has_fused_step, is_large
from hanmo.inference.openvino.weights import FORMAT
from hanmo.model import Model

__all__ = ["build", "round_int4", "scales_int4"]

JOINED = {"attention": ("query", "key", "value"), "cross": ("key", "value"), "feed_forward": ("gate", "input")}
"""Matrices with the same input are stored, and multiplied, as one; its name joins theirs with "_"."""

TABLES = (".position.weight", ".segment.weight", ".relative.weight")
BYTES = {"int8": 1.0, "int4": 0.5}  # of a number, without its share of a scale
PIECE = 1 << 22  # numbers that are converted together


def build(
    checkpoint: str | Path | Location,
    path: Path,
    *,
    weights: str,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Recognise a checkpoint and write the engine's file of weights at `path`, which appears complete or not at all.

    weights: one of `weights.KINDS`.   config, family: as for `hanmo.load`.
    progress: called with the bytes of each of the checkpoint's tensors once it is read.
    Raises MissingFile, CheckpointError or ConfigError before anything is written, CorruptFile for damaged bytes.
    """
    with open_source(checkpoint) as source:
        found, rows = plan(source, config=config, family=family)
        with torch.device("meta"):
            ours = {name: tuple(parameter.shape) for name, parameter in Model(found.config).named_parameters()}
        rows = [row for row in rows if row.theirs in source.tensors and any(name in ours for name in row.ours)]
        reader = _Reader(source, rows, progress)
        own = [name for name in source.tensors if not name.startswith(TASK_HEAD)] if found.format == "hanmo" else ()
        if unknown := found.unexpected or [name for name in own if name not in ours]:
            raise TensorMismatch(f"{source.path} holds the unknown {unknown[0]}; expected a {found.family}'s tensors")
        for name, shape in ours.items():
            if name not in reader.shapes:
                raise TensorMismatch(f"{source.path} lacks {name}; expected all tensors of a {found.family}")
            if reader.shapes[name] != shape:
                raise ConfigError(
                    f"{name} of {source.path} is {list(reader.shapes[name])}; the configuration makes it {list(shape)}"
                )
        words = {"format": FORMAT, "weights": weights, "config": found.config.to_json(), "source": str(source.path)}
        stack = found.config.main
        # An encoder's longer texts are read by OpenVINO, which has copies of its own of packed weights.
        packed = weights in BYTES and stack.mask != "full" and has_fused_step(stack, "quantized")
        packed = packed and is_large(int(BYTES[weights] * sum(map(prod, reader.shapes.values()))))
        items = [
            item for name, parts in _joined(reader.shapes) for item in _items(reader, name, parts, weights, packed)
        ]
        write_safetensors(path, items, metadata=words)


def _joined(names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (name in the file, names of our parameters that it joins)."""
    for name in names:
        parent, own, leaf = ["", *name.rsplit(".", 2)][-3:]
        joined = JOINED.get(parent.rpartition(".")[2], ())
        parts = tuple(f"{parent}.{each}.{leaf}" for each in joined)
        if own not in joined or any(part not in names for part in parts):
            yield name, (name,)
        elif own == joined[0]:
            yield f"{parent}.{'_'.join(joined)}.{leaf}", parts


def scales_int4(weights: Tensor, group: int) -> Tensor:
    """Choose a scale for each group of inputs of [out, in]: [out, in / group].

    Each group takes the one with the least squared error of several near that at which its largest number just fits,
    and then the one that fits the levels found best.
    """
    grouped = weights.view(len(weights), -1, group)
    place = grouped.abs().argmax(-1, keepdim=True)
    # The largest becomes -8, whatever its sign, so that all 16 levels are used.
    full = grouped.gather(-1, place) / -8
    best, scales = torch.full_like(full, torch.inf), full
    for factor in FACTORS:
        tried = nonzero(full * factor)
        error = _levels(grouped, tried).mul_(tried).sub_(grouped).square_().sum(-1, keepdim=True)
        scales = torch.where(error < best, tried, scales)
        best = torch.minimum(error, best)
    levels = _levels(grouped, scales)
    fitted = (levels * grouped).sum(-1) / levels.square_().sum(-1).clamp_(min=1)
    return nonzero(fitted)


def round_int4(weights: Tensor, scales: Tensor) -> Tensor:
    """Round [out, in] to 4 bits, two in a byte, low half first: uint8 [out, in / 2]."""
    grouped = weights.view(*scales.shape, -1)
    levels = _levels(grouped, scales[..., None]).to(torch.int8).flatten(1).view(torch.uint8) & 15
    return levels[:, 0::2] | levels[:, 1::2] << 4


FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, -1.0, -0.95, -0.9)


def _levels(weights: Tensor, scales: Tensor) -> Tensor:
    return (weights / scales).round_().clamp_(-8, 7)


class _Reader:
    """Our parameters as float32, some rows at a time."""

    def __init__(self, source: Source, rows: Sequence[Row], progress: Callable[[int], None] | None) -> None:
        self._source, self._progress = source, progress
        self._places = {name: (row, number) for row in rows for number, name in enumerate(row.ours)}
        self._kept: tuple[str, list[Tensor]] = "", []
        self._counted: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}
        for row in rows:
            parts = import_row(row, torch.empty(source.tensors[row.theirs].shape, device="meta"))
            self.shapes |= {name: tuple(part.shape) for name, part in zip(row.ours, parts, strict=True)}

    def pieces(self, names: Sequence[str]) -> Iterator[Tensor]:
        """Yield the rows of these parameters in pieces of up to PIECE numbers."""
        for row, number in [self._places[name] for name in names]:
            if self._kept[0] != row.theirs:
                if self._kept[0]:
                    self._source.release(self._kept[0])
                info = self._source.tensors[row.theirs]
                self._kept = row.theirs, import_row(row, as_tensor(self._source.read(row.theirs), info.dtype))
                if self._progress is not None and row.theirs not in self._counted:
                    self._counted.add(row.theirs)
                    self._progress(info.nbytes)
            parameter = self._kept[1][number]
            for piece in torch.split(parameter, max(1, PIECE // max(1, parameter[:1].numel()) // LANES) * LANES):
                yield piece.float().contiguous()


def _items(reader: _Reader, name: str, parts: tuple[str, ...], weights: str, packed: bool) -> list[Item]:
    shapes = [reader.shapes[part] for part in parts]
    shape = (sum(each[0] for each in shapes), *shapes[0][1:])

    def item(dtype: str, shape: tuple[int, ...], made: Iterator[Tensor | Array], suffix: str = "") -> Item:
        info = TensorInfo(name + suffix, dtype, shape, storage_bytes(dtype, shape))
        arrays = (piece.contiguous().numpy() if isinstance(piece, Tensor) else piece for piece in made)
        return name + suffix, (info, arrays)

    if len(shape) != 2 or name.endswith(TABLES) or weights == "float32":
        return [item("float32", shape, reader.pieces(parts))]
    if weights == "bfloat16":
        return [item("bfloat16", shape, (piece.bfloat16().view(torch.int16) for piece in reader.pieces(parts)))]
    # The token embedding is looked up as well as multiplied, and keeps 8 bits.
    small = weights == "int4" and name != "token.weight"
    group = group_size(shape[1]) if small else 0
    # The file has wider numbers first, so scales are computed before the weights. They are allocated before anything
    # else: small blocks that outlive the large ones between them would keep the heap from shrinking.
    scales = torch.empty(shape[0], shape[1] // group if group else 1)

    def with_scales() -> Iterator[tuple[Tensor, Tensor]]:
        at = 0
        for piece in reader.pieces(parts):
            yield piece, scales[at : at + len(piece)]
            at += len(piece)

    chosen = (own.copy_(scales_int4(piece, group) if group else scales_int8(piece)) for piece, own in with_scales())
    rounded = ((round_int4 if group else round_int8)(piece, own) for piece, own in with_scales())
    if packed:
        blocks = -(-shape[0] // LANES)
        pack, dtype, inputs = (pack_int4, "uint8", 8) if group else (pack_int8, "int8", 4)
        return [
            item(
                "float32", (blocks, scales.shape[1], LANES), (pack_scales(piece.numpy()) for piece in chosen), ".scale"
            ),
            item(dtype, (blocks, shape[1] // inputs, LANES, 4), (pack(piece.numpy()) for piece in rounded)),
        ]
    return [
        item("float32", tuple(scales.shape), chosen, ".scale"),
        item("uint8", (shape[0], shape[1] // 2), rounded) if group else item("int8", shape, rounded),
    ]
