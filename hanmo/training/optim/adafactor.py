"""AdaFactor with a factored second moment: a matrix's is kept as two vectors.

Knows recipes, parameter groups and state; knows no model and no schedule; the arithmetic is `adafactor_update`'s. There
are two named recipes, because bert4keras's and gpt2-ml's AdaFactor differ. `torch.optim.Adafactor` is neither (it caps
the learning rate, uses other axes and another epsilon).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from hanmo.errors import ConfigError, TensorMismatch
from hanmo.training.distributed import local, shard_place, zeros
from hanmo.training.optim.adafactor_on_cpu import can_fuse, fused_update
from hanmo.training.optim.adafactor_update import (
    Blocks,
    Numbers,
    Rule,
    can_compile,
    compiled_update,
    factored_axes,
    noise_key,
    update_tensor,
)


@dataclass(frozen=True)
class Recipe:
    """The settings of AdaFactor; each may also be given per parameter group.

    lr: learning rate.   beta1: decay of the update's running mean, 0 keeps none.
    beta2: decay of the second moment; None means 1 - t^-0.8 at update t.
    clip: largest root mean square of a tensor's update, or None.
    parameter_scale: multiply the update by max(rms(weight), eps2).
    weight_decay: share of the weight, times lr, that each update subtracts.
    factor_from: a tensor is factored over its two largest axes if neither is smaller.
    joint_eps: add eps1 to the product of the factors (bert4keras), else to each factor (gpt2-ml).
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
    """AdaFactor for float32 or bfloat16 parameters, after a named recipe or a custom one.

    All arithmetic is float32; bfloat16 weights are rounded stochastically, with noise that depends on (seed, parameter,
    step) only, so that a resumed run is exact. For weight decay on matrices only see schedule.py.
    State of a parameter: `step`, and `rows` and `columns` if it is factored, else `v`; `m` if beta1 > 0; all float32.
    Sharded parameters (FSDP2) are updated in place; sums over the whole tensor are reduced over the shards.
    Source: https://arxiv.org/abs/1804.04235, bert4keras `optimizers.py`, gpt2-ml `train/optimization_adafactor.py`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        recipe: Recipe | str = "gpt2-ml",
        *,
        lr: float | None = None,
        seed: int = 0,
        compile: bool = True,
    ) -> None:
        """Take parameters or groups of them.

        recipe: a key of RECIPES, or a Recipe (`dataclasses.replace` makes variants).   lr: in place of the recipe's.
        seed: of the stochastic rounding.   compile: on GPUs that support it, and for matrices on a CPU.
        Raises ConfigError for an unknown recipe or a parameter that is neither float32 nor bfloat16.
        """
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                raise ConfigError(f"AdaFactor recipe is {recipe!r}; expected one of {sorted(RECIPES)} or a Recipe")
            recipe = RECIPES[recipe]
        self._streams: dict[Tensor, int] = {}
        settings = asdict(recipe if lr is None else replace(recipe, lr=lr))
        super().__init__(params, settings | {"seed": seed, "compile": compile})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings that it leaves out are the recipe's."""
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
            # torch has cast the moments to the parameter's dtype; restore them as saved.
            for key, value in state_dict["state"].get(name, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, torch.float32, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are not changed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update_one(parameter, group)
        return loss

    def start(self, parameter: Tensor, group: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the state of a parameter, zeros before its first update."""
        state = cast(dict[str, Any], self.state[parameter])
        if state:
            return state
        if group is None:
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

    @torch.no_grad()
    def update_one(self, parameter: Tensor, group: dict[str, Any], *, guarded: bool = False) -> Tensor | None:
        """Update one parameter of a group from its gradient.

        guarded: take a gradient with inf or NaN as zero, without host synchronisation, and return the gradient's norm.
        """
        state = self.start(parameter, group)
        state["step"] += 1
        grad = cast(Tensor, parameter.grad)
        grad = grad.to_dense() if grad.is_sparse else grad
        weight = local(parameter)
        compiled = group["compile"] and can_compile(parameter)
        blocks = Blocks(weight, whole=compiled)
        rule = Rule(
            axes=factored_axes(tuple(parameter.shape), group["factor_from"]),
            guarded=guarded,
            **{name: group[name] for name in ("joint_eps", "eps1", "eps2", "clip", "beta1", "parameter_scale")},
        )
        lr = float(group["lr"])
        beta2 = group["beta2"] if group["beta2"] is not None else 1 - state["step"] ** -0.8
        keys: list[int] = []
        if weight.dtype == torch.bfloat16:
            place = (group["seed"], self._streams[parameter], state["step"], *shard_place(parameter))
            keys = [noise_key(*place, index) for index in range(len(blocks))]
        numbers = Numbers(
            lr=_number(lr, weight.device),
            beta2=_number(beta2, weight.device),
            kept=_number(1 - lr * group["weight_decay"], weight.device),
            keys=tuple(torch.full((), key, dtype=torch.int32, device=weight.device) for key in keys),
        )
        update = compiled_update if compiled else update_tensor
        if group["compile"] and can_fuse(parameter, grad, rule, blocks):
            update = fused_update
        return update(
            parameter,
            grad,
            (state["rows"], state["columns"]) if rule.axes else (state["v"],),
            state.get("m"),
            numbers,
            rule=rule,
            blocks=blocks,
        )


def load_slots(
    optimizer: AdaFactor,
    slots: Mapping[str, Mapping[str, Tensor]],
    *,
    parameters: Mapping[str, Tensor],
    transposed: Collection[str] = (),
    step: int = 0,
) -> None:
    """Load moments as a gpt2-ml checkpoint stores them, for exactly the named parameters.

    slots: {name: {"vr": [rows], "vc": [columns]} or {"v": as the parameter}}: of a kernel NAME the means
        NAME/adafactor_vr over its columns and NAME/adafactor_vc over its rows, of a vector NAME/adafactor_v.
    parameters: the same names, for example dict(model.named_parameters()).
    transposed: names of kernels stored [in, out], where a Linear's weight is [out, in].
    step: updates done before, `global_step` of a checkpoint; matters only if beta2 depends on the step.
    Raises TensorMismatch if names or shapes differ; nothing has been changed then.
    """
    missing, unexpected = sorted(set(parameters) - set(slots)), sorted(set(slots) - set(parameters))
    if missing or unexpected:
        raise TensorMismatch(
            f"AdaFactor slots do not match the parameters: {len(missing)} without slots {missing[:3]}, "
            f"{len(unexpected)} slots without parameter {unexpected[:3]}; pass the same names on both sides"
        )
    ready = {}
    for name, parameter in parameters.items():
        state = optimizer.start(parameter)
        rows, columns = ("columns", "rows") if name in transposed else ("rows", "columns")
        wanted = {"v": "v"} if "v" in state else {"vr": rows, "vc": columns}
        given = slots[name]
        expected = {
            slot: tuple(state[key].shape) if slot == "v" else (state[key].numel(),) for slot, key in wanted.items()
        }
        found = {slot: tuple(tensor.shape) for slot, tensor in given.items()}
        if found != expected:
            raise TensorMismatch(
                f"AdaFactor slots of {name} are {found}; expected {expected} for a parameter of shape "
                f"{tuple(parameter.shape)}; check `transposed`, or leave out names whose shape was changed"
            )
        ready[name] = {key: given[slot] for slot, key in wanted.items()}
    for name, moments in ready.items():
        state = optimizer.state[parameters[name]]
        state["step"] = step
        for key, tensor in moments.items():
            state[key].copy_(tensor.reshape(state[key].shape))


@lru_cache(maxsize=64)  # the parameters of a step share their numbers; on a GPU each costs a kernel
def _number(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=device)
