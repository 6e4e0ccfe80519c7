"""AdaFactor, really factored: the second moment of a matrix is kept as two vectors.

Knows parameters, gradients and their shards; knows no model and no schedule. Two recipes by name, because the two
systems that trained with it differ: bert4keras's and gpt2-ml's. `torch.optim.Adafactor` is neither (it caps the
learning rate, uses other axes and another epsilon).

Passes over a factored tensor, in blocks that stay in cache: read the gradient for the moments; read it for the size of
the update; read it, and read and write the weight. Parameter scaling reads the weight once more. No temporary is as
large as the tensor.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hanmo.errors import ConfigError
from hanmo.train.rounding import noise_generator, round_stochastically
from hanmo.train.shards import is_sharded, local, shard_place, sum_over_shards, zeros

__all__ = ["RECIPES", "AdaFactor", "Recipe", "factored_axes"]


@dataclass(frozen=True)
class Recipe:
    """Name every setting of AdaFactor; each may also be given per parameter group.

    lr: learning rate.   beta1: decay of the update's running mean, 0 keeps none.
    beta2: decay of the second moment; None means 1 - t^-0.8 at update t.
    clip: largest root mean square of a tensor's update, or None.
    parameter_scale: multiply the update by max(rms(weight), eps2).
    weight_decay: share of the weight, times lr, that each update takes away.
    factor_from: a tensor is factored over its two largest axes if neither is smaller.
    joint_eps: add eps1 to the second moment put together (bert4keras), else to each of its factors (gpt2-ml).
    Raises ConfigError for a value outside its range.
    """

    lr: float
    beta1: float
    beta2: float | None
    parameter_scale: bool
    weight_decay: float
    factor_from: int
    joint_eps: bool
    clip: float | None = 1.0
    eps1: float = 1e-30
    eps2: float = 1e-3

    def __post_init__(self) -> None:
        ranges = {
            "lr": self.lr >= 0,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": self.beta2 is None or 0 <= self.beta2 < 1,
            "weight_decay": self.weight_decay >= 0,
            "factor_from": self.factor_from >= 1,
            "clip": self.clip is None or self.clip > 0,
            "eps1": self.eps1 > 0,
            "eps2": self.eps2 >= 0,
        }
        for name, right in ranges.items():
            if not right:
                raise ConfigError(
                    f"{name}={getattr(self, name)} in an AdaFactor recipe is out of range; "
                    "expected lr, weight_decay, eps2 >= 0, betas in [0, 1), clip, eps1 > 0, factor_from >= 1"
                )


RECIPES = {
    "bert4keras": Recipe(
        lr=1e-3, beta1=0.0, beta2=None, parameter_scale=True, weight_decay=0.0, factor_from=128, joint_eps=True
    ),
    # lr: what the released models were trained with, after 10,000 steps of warm-up.
    "gpt2-ml": Recipe(
        lr=1e-4, beta1=0.0, beta2=0.999, parameter_scale=False, weight_decay=0.01, factor_from=1, joint_eps=False
    ),
}


class AdaFactor(Optimizer):
    """Update float32 or bfloat16 parameters by AdaFactor, after a named recipe or one's own.

    All arithmetic is float32; bfloat16 weights are rounded stochastically, with noise that depends on (seed, parameter,
    step) only, so that a resumed run goes on exactly. For weight decay on matrices only see `hanmo.train.layerwise`.
    State of a parameter: `step`, and `rows` and `columns` if it is factored, else `v`; `m` if beta1 > 0; all float32.
    Sharded parameters (FSDP2) are updated where they lie; what needs the whole tensor is summed over the shards.
    Source: https://arxiv.org/abs/1804.04235, bert4keras `optimizers.py`, gpt2-ml `train/optimization_adafactor.py`.
    """

    def __init__(
        self, params: Iterable[Any], recipe: Recipe | str = "gpt2-ml", *, lr: float | None = None, seed: int = 0
    ) -> None:
        """Take parameters or groups of them.

        recipe: a key of RECIPES, or a Recipe (`dataclasses.replace` makes variants).   lr: in place of the recipe's.
        seed: of the stochastic rounding.
        Raises ConfigError for an unknown recipe or a parameter that is neither float32 nor bfloat16.
        """
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                raise ConfigError(f"AdaFactor recipe is {recipe!r}; expected one of {sorted(RECIPES)} or a Recipe")
            recipe = RECIPES[recipe]
        self._streams: dict[Tensor, int] = {}
        settings = asdict(recipe if lr is None else replace(recipe, lr=lr))
        super().__init__(params, settings | {"seed": seed})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings it does not name are the recipe's."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise ConfigError(
                    f"AdaFactor was given a parameter of {parameter.dtype}, shape {tuple(parameter.shape)}; "
                    "expected float32 or bfloat16; convert the model with .to(torch.float32)"
                )
            self._streams[parameter] = len(self._streams)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_streams": self._streams}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore settings, counters and moments; the moments stay float32 whatever the parameters are."""
        super().load_state_dict(state_dict)
        names = (name for group in state_dict["param_groups"] for name in group["params"])
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for name, parameter in zip(names, parameters, strict=True):
            if parameter.dtype == torch.float32:
                continue
            # torch has cast the moments to the parameter's type; take them again from what was saved.
            for key, value in state_dict["state"].get(name, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, torch.float32, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def start(self, parameter: Tensor) -> dict[str, Any]:
        """Give the state of a parameter, made of zeros if it was never updated."""
        state = cast(dict[str, Any], self.state[parameter])
        if state:
            return state
        group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
        state["step"] = 0
        axes = factored_axes(tuple(parameter.shape), group["factor_from"])
        if axes is None:
            state["v"] = zeros(parameter)
        else:
            state["rows"], state["columns"] = zeros(parameter, reduced=axes[1:]), zeros(parameter, reduced=axes[:1])
        if group["beta1"]:
            state["m"] = zeros(parameter)
        return state

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.start(parameter)
        state["step"] += 1
        beta2 = group["beta2"] if group["beta2"] is not None else 1 - state["step"] ** -0.8
        weight, grad = local(parameter), local(cast(Tensor, parameter.grad))
        grad = grad.to_dense() if grad.is_sparse else grad
        blocks = _Blocks(weight)
        if "v" in state:
            direction = _plain(grad, state, beta2, group["eps1"], blocks)
        else:
            direction = _factored(parameter, grad, state, beta2, group, blocks)
        if len(blocks) == 1:
            direction = _constant(direction(0))  # made once, used by both passes

        denominator = weight.new_ones((), dtype=torch.float32)
        if group["clip"] is not None:
            denominator = (_rms(parameter, direction, blocks) / group["clip"]).clamp_(min=1)
        lr = weight.new_full((), float(group["lr"]), dtype=torch.float32)
        if group["parameter_scale"]:
            lr = lr * _rms(parameter, lambda index: blocks.cut(weight, index), blocks).clamp_(min=group["eps2"])
        kept = 1 - float(group["lr"]) * group["weight_decay"]
        momentum = local(state["m"]) if group["beta1"] else None
        generator = None
        if weight.dtype == torch.bfloat16:
            key = (group["seed"], self._streams[parameter], state["step"], *shard_place(parameter))
            generator = noise_generator(weight.device, *key)
        for index in range(len(blocks)):
            update, scale = direction(index), lr / denominator
            if momentum is not None:
                mean, share = blocks.cut(momentum, index), (1 - group["beta1"]) / denominator
                update, scale = mean.mul_(group["beta1"]).addcmul_(update, share), lr
            _apply(blocks.cut(weight, index), update, scale, kept, generator)


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


class _Blocks:
    """Slices of a tensor along its slowest axis, so small that temporaries of one stay in cache."""

    def __init__(self, like: Tensor) -> None:
        limit = 1 << 18 if like.device.type == "cpu" else 1 << 24  # elements
        sizes = list(like.shape) or [1]
        strides = [stride if size > 1 else 0 for size, stride in zip(sizes, like.stride() or (1,), strict=True)]
        self._axis = max(range(len(sizes)), key=strides.__getitem__)
        self._size = sizes[self._axis]
        self._length = max(1, limit * self._size // max(1, like.numel()))

    def __len__(self) -> int:
        return -(-self._size // self._length)

    def cut(self, tensor: Tensor, index: int) -> Tensor:
        """Give block `index` of a tensor, or all of it where it is 1 wide along the axis."""
        if tensor.ndim == 0 or tensor.shape[self._axis] == 1:
            return tensor
        start = index * self._length
        return tensor.narrow(self._axis, start, min(self._length, self._size - start))


def _factored(
    parameter: Tensor, grad: Tensor, state: dict[str, Any], beta2: float, group: dict[str, Any], blocks: _Blocks
) -> Callable[[int], Tensor]:
    """Update the two vectors; give the function from a block's number to its unclipped update."""
    first, second = cast(tuple[int, int], factored_axes(tuple(parameter.shape), group["factor_from"]))
    rows, columns = local(state["rows"]), local(state["columns"])
    sums = {second: torch.zeros_like(rows), first: torch.zeros_like(columns)}
    for index in range(len(blocks)):
        square = blocks.cut(grad, index).float().square()
        for axis, total in sums.items():
            blocks.cut(total, index).add_(square.sum(axis, keepdim=True))
    for moment, axis in ((rows, second), (columns, first)):
        mean = sum_over_shards(parameter, sums[axis], axis=axis).div_(parameter.shape[axis]).add_(group["eps1"])
        moment.mul_(beta2).add_(mean, alpha=1 - beta2)
    # The mean over all is the same of either vector; take it of the one that is whole on every shard.
    level = columns.mean(second, keepdim=True) if is_sharded(parameter, first) else rows.mean(first, keepdim=True)
    rows = rows / level

    def joint(index: int) -> Tensor:
        block = blocks.cut(grad, index).float()
        # The outer product in the gradient's own layout: a transposed one would cost more than all the rest.
        moment = torch.mul(blocks.cut(rows, index), blocks.cut(columns, index), out=torch.empty_like(block))
        return moment.add_(group["eps1"]).rsqrt_().mul_(block)

    def apart(index: int) -> Tensor:
        return (blocks.cut(grad, index).float() * blocks.cut(by_row, index)).mul_(blocks.cut(by_column, index))

    if group["joint_eps"]:
        return joint
    by_row, by_column = (rows + group["eps1"]).rsqrt_(), (columns + group["eps1"]).rsqrt_()
    return apart


def _plain(grad: Tensor, state: dict[str, Any], beta2: float, eps1: float, blocks: _Blocks) -> Callable[[int], Tensor]:
    """Update a second moment as large as the tensor; give the function as above."""
    v = local(state["v"])
    for index in range(len(blocks)):
        square = blocks.cut(grad, index).float().square().add_(eps1)
        blocks.cut(v, index).mul_(beta2).add_(square, alpha=1 - beta2)
    return lambda index: (blocks.cut(v, index) + eps1).rsqrt_().mul_(blocks.cut(grad, index).float())


def _constant(block: Tensor) -> Callable[[int], Tensor]:
    return lambda _: block


def _apply(weight: Tensor, update: Tensor, scale: Tensor, kept: float, generator: torch.Generator | None) -> None:
    """Write weight * kept - update * scale into the weight."""
    exact = weight.float()  # the weight itself if it is float32
    if kept != 1:
        exact.mul_(kept)
    exact.addcmul_(update, scale, value=-1)
    if generator is not None:
        round_stochastically(weight, exact, generator=generator)


def _rms(parameter: Tensor, block: Callable[[int], Tensor], blocks: _Blocks) -> Tensor:
    """Root mean square over the whole parameter of what `block` gives for each block."""
    total = torch.zeros((), dtype=torch.float32, device=local(parameter).device)
    for index in range(len(blocks)):
        total += block(index).float().square().sum()
    return sum_over_shards(parameter, total).div_(max(1, parameter.numel())).sqrt_()
