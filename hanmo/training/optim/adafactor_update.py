"""One AdaFactor update of one tensor: in blocks, over shards, and compiled on a GPU; and stochastic rounding.

Knows tensors only; recipes, counters and parameter groups are `adafactor`'s.

Passes over a factored tensor, in blocks that fit the CPU's cache: read the gradient for the moments; read it for the
size of the update; read it, and read and write the weight. Parameter scaling reads the weight once more. No temporary
is as large as the tensor. On a GPU torch.compile makes one kernel of each pass, without temporaries; for matrices on a
CPU adafactor_on_cpu.py runs one loop a pass.

Rounding: a bfloat16 weight of 1 moves in steps of 1/128, so rounding to nearest loses every smaller update; rounding up
or down at random preserves the mean. The noise is a hash of a key and the position in the tensor: no generator, hence
no state, and the same on every device.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hanmo.training.distributed import is_sharded, local, sum_over_shards

Block = Callable[[int], Tensor]

# Odd factors with well-spread bits (of xxHash and MurmurHash3), as signed 32-bit numbers.
_FIRST, _SECOND = 0x9E3779B1 - (1 << 32), 0x85EBCA77 - (1 << 32)


class Rule(NamedTuple):
    """The constants of a parameter's updates; the names are those of `adafactor.Recipe`.

    axes: the two factored axes, or None.   guarded: take a gradient that holds inf or NaN as zero.
    """

    axes: tuple[int, int] | None
    joint_eps: bool
    eps1: float
    eps2: float
    clip: float | None
    beta1: float
    parameter_scale: bool
    guarded: bool


class Numbers(NamedTuple):
    """The numbers of one update: tensors of one element on the weight's device.

    lr: learning rate.   beta2: of this update.   kept: 1 - lr * weight decay.
    keys: int32, a noise key for each block of a bfloat16 weight; else empty.
    """

    lr: Tensor
    beta2: Tensor
    kept: Tensor
    keys: tuple[Tensor, ...]


def update_tensor(
    parameter: Tensor,
    grad: Tensor,
    moments: tuple[Tensor, ...],
    momentum: Tensor | None,
    numbers: Numbers,
    *,
    rule: Rule,
    blocks: "Blocks",
) -> Tensor | None:
    """Update a parameter and its state in place.

    moments: (rows, columns), or (v,) where rule.axes is None.
    grad, moments, momentum: may be shards as the parameter is.
    Returns the Euclidean norm of the gradient if rule.guarded; shards cannot be guarded.
    """
    weight, norm = local(parameter), None
    read = _reader(local(grad), blocks)
    if rule.axes is None:
        if rule.guarded:
            norm = _square_sum(read, blocks, weight).sqrt()
            read = _guard(read, norm)
        direction = _plain(read, local(moments[0]), numbers.beta2, rule, blocks)
    else:
        sums = _axis_sums(read, moments, rule.axes, blocks)
        if rule.guarded:
            norm = sums[0].sum().sqrt()
            read = _guard(read, norm)
            sums = [torch.where(norm.isfinite(), total, 0) for total in sums]
        factors = update_factors(parameter, sums, moments, numbers.beta2, rule)
        direction = _factored(read, *factors, rule, blocks)
    if len(blocks) == 1:
        direction = _constant(direction(0))  # computed once, used by both passes

    scale = numbers.lr
    if rule.parameter_scale:
        scale = scale * _rms(parameter, lambda index: blocks.cut(weight, index), blocks).clamp(min=rule.eps2)
    shrink = scale.new_ones(())
    if rule.clip is not None:
        shrink = 1 / (_rms(parameter, direction, blocks) / rule.clip).clamp(min=1)
    for index in range(len(blocks)):
        if momentum is None:
            update, factor = direction(index), scale * shrink
        else:
            mean = blocks.cut(local(momentum), index)
            mean.mul_(rule.beta1).addcmul_(direction(index), (1 - rule.beta1) * shrink)
            update, factor = mean, scale
        target = blocks.cut(weight, index)
        exact = target.float()  # the weight itself if it is float32
        exact.mul_(numbers.kept).addcmul_(update, factor, value=-1)
        if target.dtype == torch.bfloat16:
            round_stochastically(target, exact, key=numbers.keys[index])
    return norm


def compiled_update(parameter: Tensor, *state: Any, **options: Any) -> Tensor | None:
    """Run `update_tensor` compiled for the shape: for whole tensors on a GPU.

    If the compiler fails, warns once for the shape and runs it uncompiled.
    """
    update, rule = _compiled(), options["rule"]
    kind = (parameter.shape, parameter.stride(), parameter.dtype, parameter.device, rule)
    if kind in _KINDS:
        return (update if _KINDS[kind] else update_tensor)(parameter, *state, **options)
    # torch stops compiling after 8 kinds of arguments; a model has one for each shape.
    with torch._dynamo.config.patch(recompile_limit=8 + len(_KINDS)):
        try:
            norm = update(parameter, *state, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            # All kernels are compiled before the first runs, so nothing has changed yet.
            _KINDS[kind] = False
            warnings.warn(
                f"torch.compile failed for AdaFactor on {parameter.dtype} of shape {tuple(parameter.shape)}: "
                f"{str(error).splitlines()[0]}; going on without kernels, slower; compile=False asks for none",
                stacklevel=2,
            )
            return update_tensor(parameter, *state, **options)
    _KINDS[kind] = True
    return norm


def can_compile(parameter: Tensor) -> bool:
    """Whether `compiled_update` supports a parameter: on NVIDIA GPUs since Ampere, with Triton."""
    return parameter.device.type == "cuda" and not is_sharded(parameter) and _compiles_on(parameter.device)


@cache
def factored_axes(shape: tuple[int, ...], factor_from: int) -> tuple[int, int] | None:
    """Return the two axes over which a tensor's second moment is factored, in order, or None.

    They are the two largest; among equals the choice is NumPy's argpartition's, as in bert4keras.
    """
    if len(shape) < 2:
        return None
    order = np.argpartition(np.array(shape), -2)
    if shape[order[-2]] < factor_from:
        return None
    first, second = sorted(int(axis) for axis in order[-2:])
    return first, second


class Blocks:
    """Slices of a tensor along its slowest axis, small enough that temporaries stay in cache."""

    def __init__(self, like: Tensor, *, whole: bool = False) -> None:
        """Plan the slices of a tensor; `whole` makes a single one."""
        limit = 1 << 18 if like.device.type == "cpu" else 1 << 24  # elements
        self._count, self._axis, self._length = 1, 0, 0
        if not whole and like.numel() > limit:
            strides = [stride if size > 1 else 0 for size, stride in zip(like.shape, like.stride(), strict=True)]
            self._axis = max(range(like.ndim), key=strides.__getitem__)
            self._length = max(1, limit * like.shape[self._axis] // like.numel())
            self._count = -(-like.shape[self._axis] // self._length)

    def __len__(self) -> int:
        return self._count

    @property
    def length(self) -> int:
        """Size of a block along the axis; 0 if there is one block."""
        return self._length

    def cut(self, tensor: Tensor, index: int) -> Tensor:
        """Return block `index` of a tensor, or all of it if its size along the axis is 1."""
        if self._count == 1 or tensor.shape[self._axis] == 1:
            return tensor
        start = index * self._length
        return tensor.narrow(self._axis, start, min(self._length, tensor.shape[self._axis] - start))


def noise_key(*parts: int) -> int:
    """Mix numbers, for example (seed, stream, step), into a key: a signed 32-bit number."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def round_stochastically(target: Tensor, values: Tensor, *, key: Tensor) -> None:
    """Write float32 values into a bfloat16 tensor, rounded so that the mean is kept.

    target: bfloat16, overwritten.   values: float32 of the same shape, dense in memory; destroyed.
    key: of the noise, one int32.
    A value that bfloat16 can hold is written as it is; infinities and NaN stay what they are.
    """
    noise = torch.arange(values.numel(), dtype=torch.int32, device=values.device)
    noise.mul_(_FIRST).add_(key)
    noise.bitwise_xor_((noise >> 15).bitwise_and_(0x1FFFF)).mul_(_SECOND)
    noise = (noise >> 16).bitwise_and_(0xFFFF)
    bits = values.view(torch.int32)
    bits = bits.add_(noise.as_strided(values.shape, values.stride())).bitwise_and_(-(1 << 16))
    target.copy_(bits.view(torch.float32))


_KINDS: dict[tuple[Any, ...], bool] = {}  # compiled in this process, and whether that succeeded


@cache
def _compiled() -> Callable[..., Tensor | None]:
    return torch.compile(update_tensor, dynamic=False)


@cache
def _compiles_on(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0) and importlib.util.find_spec("triton") is not None


def _reader(grad: Tensor, blocks: Blocks) -> Block:
    """Return the function from a block's number to the gradient there, float32."""
    return lambda index: blocks.cut(grad, index).float()


def _axis_sums(read: Block, moments: tuple[Tensor, ...], axes: tuple[int, int], blocks: Blocks) -> list[Tensor]:
    """Sum the squared gradient over the second axis and over the first, in the layout of `rows` and `columns`."""
    sums = [torch.zeros_like(local(moment)) for moment in moments]
    for index in range(len(blocks)):
        square = read(index).square()
        for total, axis in zip(sums, reversed(axes), strict=True):
            blocks.cut(total, index).add_(square.sum(axis, keepdim=True))
    return sums


def update_factors(
    parameter: Tensor, sums: list[Tensor], moments: tuple[Tensor, ...], beta2: Tensor, rule: Rule
) -> tuple[Tensor, Tensor]:
    """Update rows and columns; return factors of the second moment, or if not rule.joint_eps of the gradient."""
    assert rule.axes is not None
    first, second = rule.axes
    rows, columns = (local(moment) for moment in moments)
    for moment, total, axis in zip((rows, columns), sums, (second, first), strict=True):
        mean = sum_over_shards(parameter, total, axis=axis) / parameter.shape[axis] + rule.eps1
        moment.lerp_(mean, 1 - beta2)
    # Both vectors have the same mean; take that of the one that is not sharded.
    level = columns.mean(second, keepdim=True) if is_sharded(parameter, first) else rows.mean(first, keepdim=True)
    rows = rows / level
    return (rows, columns) if rule.joint_eps else ((rows + rule.eps1).rsqrt_(), (columns + rule.eps1).rsqrt_())


def _factored(read: Block, rows: Tensor, columns: Tensor, rule: Rule, blocks: Blocks) -> Block:
    """Return the function from a block's number to its unclipped update, by what `update_factors` returned."""

    def joint(index: int) -> Tensor:
        block = read(index)
        # The outer product in the gradient's memory layout; a transposed one would dominate the cost.
        moment = torch.empty_like(block).copy_(blocks.cut(rows, index)).mul_(blocks.cut(columns, index))
        return moment.add_(rule.eps1).rsqrt_().mul_(block)

    def apart(index: int) -> Tensor:
        return (read(index) * blocks.cut(rows, index)).mul_(blocks.cut(columns, index))

    return joint if rule.joint_eps else apart


def _plain(read: Block, v: Tensor, beta2: Tensor, rule: Rule, blocks: Blocks) -> Block:
    """Update a second moment as large as the tensor; return the function as above."""
    for index in range(len(blocks)):
        blocks.cut(v, index).lerp_(read(index).square().add_(rule.eps1), 1 - beta2)
    return lambda index: (blocks.cut(v, index) + rule.eps1).rsqrt_().mul_(read(index))


def _guard(read: Block, norm: Tensor) -> Block:
    """Read zeros if the norm is not finite; on a GPU without host synchronisation."""
    if norm.device.type == "cpu" and norm.isfinite():
        return read
    return lambda index: torch.where(norm.isfinite(), read(index), 0)


def _constant(block: Tensor) -> Block:
    return lambda _: block


def _rms(parameter: Tensor, block: Block, blocks: Blocks) -> Tensor:
    """Root mean square over the whole parameter of what `block` gives for each block."""
    total = sum_over_shards(parameter, _square_sum(block, blocks, local(parameter)))
    return (total / max(1, parameter.numel())).sqrt()


def _square_sum(block: Block, blocks: Blocks, like: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float32, device=like.device)
    for index in range(len(blocks)):
        total = total + block(index).float().square().sum()
    return total
