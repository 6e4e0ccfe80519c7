"""One AdaFactor update of one tensor: the arithmetic, in blocks, over shards, and compiled on a GPU.

Knows tensors only; recipes, counters and parameter groups are `adafactor`'s.

Passes over a factored tensor, in blocks that stay in the CPU's cache: read the gradient for the moments; read it for
the size of the update; read it, and read and write the weight. Parameter scaling reads the weight once more. No
temporary is as large as the tensor. On a GPU torch.compile makes a kernel of each pass, without temporaries.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hanmo.training.distributed import is_sharded, local, sum_over_shards
from hanmo.training.rounding import round_stochastically

__all__ = ["Numbers", "Rule", "can_compile", "compiled_update", "factored_axes", "update_tensor"]

Block = Callable[[int], Tensor]


class Rule(NamedTuple):
    """What does not change from update to update; the names are those of `adafactor.Recipe`.

    axes: the two axes that are factored, or None.   guarded: take a gradient that holds inf or NaN as zero.
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
    """What changes: tensors of one element on the weight's device.

    lr: learning rate.   beta2: of this update.   kept: 1 - lr * weight decay.
    unscale: factor of the gradient, or None.
    keys: int32, a noise key for each block of a bfloat16 weight; else empty.
    """

    lr: Tensor
    beta2: Tensor
    kept: Tensor
    unscale: Tensor | None
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
    read = _reader(local(grad), numbers.unscale, blocks)
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
        direction = _factored(parameter, read, sums, moments, numbers.beta2, rule, blocks)
    if len(blocks) == 1:
        direction = _constant(direction(0))  # made once, used by both passes

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


def compiled_update(
    parameter: Tensor,
    grad: Tensor,
    moments: tuple[Tensor, ...],
    momentum: Tensor | None,
    numbers: Numbers,
    *,
    rule: Rule,
    blocks: "Blocks",
) -> Tensor | None:
    """Do what `update_tensor` does, compiled for the shape: for whole tensors on a GPU.

    Where the compiler fails, warns once for the shape and does it uncompiled.
    """
    update = _compiled()
    kind = (parameter.shape, parameter.stride(), parameter.dtype, parameter.device, rule, numbers.unscale is None)
    if kind in _KINDS:
        update = update if _KINDS[kind] else update_tensor
        return update(parameter, grad, moments, momentum, numbers, rule=rule, blocks=blocks)
    # torch gives up after 8 kinds of arguments and goes on uncompiled; a model has as many as it has shapes.
    with torch._dynamo.config.patch(recompile_limit=8 + len(_KINDS)):
        try:
            norm = update(parameter, grad, moments, momentum, numbers, rule=rule, blocks=blocks)
        except torch._dynamo.exc.TorchDynamoException as error:
            # Kernels are made before any runs, so nothing was changed yet.
            _KINDS[kind] = False
            warnings.warn(
                f"torch.compile failed for AdaFactor on {parameter.dtype} of shape {tuple(parameter.shape)}: "
                f"{str(error).splitlines()[0]}; going on without kernels, slower; compile=False asks for none",
                stacklevel=2,
            )
            return update_tensor(parameter, grad, moments, momentum, numbers, rule=rule, blocks=blocks)
    _KINDS[kind] = True
    return norm


def can_compile(parameter: Tensor) -> bool:
    """Say whether `compiled_update` is to be had for a parameter: on NVIDIA GPUs since Ampere, with Triton."""
    return parameter.device.type == "cuda" and not is_sharded(parameter) and _compiles_on(parameter.device)


@cache
def factored_axes(shape: tuple[int, ...], factor_from: int) -> tuple[int, int] | None:
    """Give the two axes over which a tensor's second moment is factored, in order, or None.

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
    """Slices of a tensor along its slowest axis, so small that temporaries of one stay in cache."""

    def __init__(self, like: Tensor, *, whole: bool = False) -> None:
        """Plan the slices of a tensor; `whole` makes it one."""
        limit = 1 << 18 if like.device.type == "cpu" else 1 << 24  # elements
        self._count, self._axis, self._length = 1, 0, 0
        if not whole and like.numel() > limit:
            strides = [stride if size > 1 else 0 for size, stride in zip(like.shape, like.stride(), strict=True)]
            self._axis = max(range(like.ndim), key=strides.__getitem__)
            self._length = max(1, limit * like.shape[self._axis] // like.numel())
            self._count = -(-like.shape[self._axis] // self._length)

    def __len__(self) -> int:
        return self._count

    def cut(self, tensor: Tensor, index: int) -> Tensor:
        """Give block `index` of a tensor, or all of it where it is 1 wide along the axis."""
        if self._count == 1 or tensor.shape[self._axis] == 1:
            return tensor
        start = index * self._length
        return tensor.narrow(self._axis, start, min(self._length, tensor.shape[self._axis] - start))


_KINDS: dict[tuple[Any, ...], bool] = {}  # what this process compiled, and whether that succeeded


@cache
def _compiled() -> Callable[..., Tensor | None]:
    return torch.compile(update_tensor, dynamic=False)


@cache
def _compiles_on(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0) and importlib.util.find_spec("triton") is not None


def _reader(grad: Tensor, unscale: Tensor | None, blocks: Blocks) -> Block:
    """Give the function from a block's number to the gradient there, float32."""

    def read(index: int) -> Tensor:
        block = blocks.cut(grad, index).float()
        return block if unscale is None else block * unscale

    return read


def _axis_sums(read: Block, moments: tuple[Tensor, ...], axes: tuple[int, int], blocks: Blocks) -> list[Tensor]:
    """Sum the squared gradient over the second axis and over the first, as `rows` and `columns` are laid."""
    sums = [torch.zeros_like(local(moment)) for moment in moments]
    for index in range(len(blocks)):
        square = read(index).square()
        for total, axis in zip(sums, reversed(axes), strict=True):
            blocks.cut(total, index).add_(square.sum(axis, keepdim=True))
    return sums


def _factored(
    parameter: Tensor,
    read: Block,
    sums: list[Tensor],
    moments: tuple[Tensor, ...],
    beta2: Tensor,
    rule: Rule,
    blocks: Blocks,
) -> Block:
    """Update rows and columns; give the function from a block's number to its unclipped update."""
    assert rule.axes is not None
    first, second = rule.axes
    rows, columns = (local(moment) for moment in moments)
    for moment, total, axis in zip((rows, columns), sums, (second, first), strict=True):
        mean = sum_over_shards(parameter, total, axis=axis) / parameter.shape[axis] + rule.eps1
        moment.lerp_(mean, 1 - beta2)
    # The mean over all is the same of either vector; take it of the one that is whole on every shard.
    level = columns.mean(second, keepdim=True) if is_sharded(parameter, first) else rows.mean(first, keepdim=True)
    rows = rows / level

    def joint(index: int) -> Tensor:
        block = read(index)
        # The outer product in the gradient's own layout: a transposed one would cost more than all the rest.
        moment = torch.empty_like(block).copy_(blocks.cut(rows, index)).mul_(blocks.cut(columns, index))
        return moment.add_(rule.eps1).rsqrt_().mul_(block)

    def apart(index: int) -> Tensor:
        return (read(index) * blocks.cut(by_row, index)).mul_(blocks.cut(by_column, index))

    if rule.joint_eps:
        return joint
    by_row, by_column = (rows + rule.eps1).rsqrt_(), (columns + rule.eps1).rsqrt_()
    return apart


def _plain(read: Block, v: Tensor, beta2: Tensor, rule: Rule, blocks: Blocks) -> Block:
    """Update a second moment as large as the tensor; give the function as above."""
    for index in range(len(blocks)):
        blocks.cut(v, index).lerp_(read(index).square().add_(rule.eps1), 1 - beta2)
    return lambda index: (blocks.cut(v, index) + rule.eps1).rsqrt_().mul_(read(index))


def _guard(read: Block, norm: Tensor) -> Block:
    """Read zeros where the norm is not finite; on a GPU without asking, for asking would wait."""
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
