"""bert4keras.optimizers as Keras 3 optimizers: the updates of 0.11.5 under tf.keras, all weights of a model at once."""

from functools import partial
from typing import Any

import keras
import torch
from torch import Tensor

from hanmo.compat.bert4keras._absent import TENSORFLOW_ALONE, absent
from hanmo.compat.bert4keras.graph import extensions
from hanmo.compat.bert4keras.graph.backend import K as K
from hanmo.compat.bert4keras.graph.backend import piecewise_linear as piecewise_linear
from hanmo.compat.bert4keras.graph.extensions import state_of
from hanmo.compat.bert4keras.snippets import string_matching
from hanmo.training.optim.adafactor_update import Blocks, Numbers, Rule, factored_axes, update_tensor


class _Optimizer(keras.optimizers.Optimizer):
    """What the optimizers here share. _arguments: names of the arguments that are attributes.

    lr: Keras 2's name of learning_rate.   decay: divides the rate by 1 + decay · step.
    """

    _arguments: tuple[str, ...] = ()

    def __init__(self, learning_rate: Any, lr: Any = None, decay: float = 0.0, **kwargs: Any) -> None:
        rate = learning_rate if lr is None else lr
        if isinstance(rate, int):
            rate = float(rate)
        if decay:
            rate = keras.optimizers.schedules.InverseTimeDecay(rate, 1, decay)
        super().__init__(rate, **kwargs)

    @property
    def lr(self) -> Any:
        return self._learning_rate

    def _set(self, arguments: dict[str, Any]) -> None:
        for name in self._arguments:
            setattr(self, name, arguments[name])

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {name: getattr(self, name) for name in self._arguments}


class Adam(_Optimizer):
    """Adam as in its paper (arXiv 1412.6980, algorithm 1): epsilon is added to the root of the corrected moment."""

    _arguments = ("beta_1", "beta_2", "epsilon", "bias_correction")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        bias_correction: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self._set(locals())

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.m, self.v = self.add_optimizer_variables(variables, ["m", "v"])

    def _backend_update_step(self, grads: list[Tensor], variables: list[Any], learning_rate: Any) -> None:
        m, v, step = state_of(self, "m", variables), state_of(self, "v", variables), int(self.iterations) + 1
        torch._foreach_lerp_(m, grads, 1 - self.beta_1)
        torch._foreach_mul_(v, self.beta_2)
        torch._foreach_addcmul_(v, grads, grads, 1 - self.beta_2)
        first, second = (1 - self.beta_1**step, 1 - self.beta_2**step) if self.bias_correction else (1.0, 1.0)
        divisors = torch._foreach_div(v, second)
        torch._foreach_sqrt_(divisors)
        torch._foreach_add_(divisors, self.epsilon)
        torch._foreach_addcdiv_([each.value for each in variables], m, divisors, -float(learning_rate) / first)


class Lion(_Optimizer):
    """Lion (arXiv 2302.06675)."""

    _arguments = ("beta_1", "beta_2")

    def __init__(self, learning_rate: Any = 3e-4, beta_1: float = 0.95, beta_2: float = 0.98, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        self._set(locals())

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.m = self.add_optimizer_variables(variables, "m")

    def _backend_update_step(self, grads: list[Tensor], variables: list[Any], learning_rate: Any) -> None:
        m = state_of(self, "m", variables)
        directions = torch._foreach_lerp(m, grads, 1 - self.beta_1)
        torch._foreach_sign_(directions)
        torch._foreach_add_([each.value for each in variables], directions, alpha=-float(learning_rate))
        torch._foreach_lerp_(m, grads, 1 - self.beta_2)


@keras.saving.register_keras_serializable("hanmo")
class _RelativeStep(keras.optimizers.schedules.LearningRateSchedule):
    """AdaFactor's own learning rate: min(0.01, 1 / √step)."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, step: Any) -> float:
        return self.factor * min((int(step) + 1) ** -0.5, 0.01)

    def get_config(self) -> dict[str, float]:
        return {"factor": self.factor}


class AdaFactor(_Optimizer):
    """AdaFactor by the recipe "bert4keras" of `hanmo.training.optim.adafactor`.

    learning_rate: None takes min(0.01, 1 / √step), a twentieth of it without parameter scale.
    exclude_from_parameter_scale: patterns of names of weights.
    """

    _arguments = tuple(
        "beta1 beta2 epsilon1 epsilon2 multiply_by_parameter_scale clipping_threshold min_dim_size_to_factor "
        "exclude_from_parameter_scale".split()
    )

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta1: float = 0.0,
        beta2: float | None = None,
        epsilon1: float = 1e-30,
        epsilon2: float = 1e-3,
        multiply_by_parameter_scale: bool = True,
        clipping_threshold: float | None = 1.0,
        min_dim_size_to_factor: int = 128,
        exclude_from_parameter_scale: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if learning_rate is None:
            learning_rate = _RelativeStep(1.0 if multiply_by_parameter_scale else 0.05)
        exclude_from_parameter_scale = exclude_from_parameter_scale or []
        super().__init__(learning_rate, **kwargs)
        self._set(locals())

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self.moments, self.m = [], []
        for each in variables:
            shape, axes = tuple(each.shape), self._axes(each)
            sizes = [shape] if axes is None else [(*shape[:axis], 1, *shape[axis + 1 :]) for axis in reversed(axes)]
            self.moments.append([self.add_variable(size, name="moment") for size in sizes])
        if self.beta1:
            self.m = self.add_optimizer_variables(variables, "m")

    def _axes(self, variable: Any) -> tuple[int, int] | None:
        return factored_axes(tuple(variable.shape), self.min_dim_size_to_factor)

    def _backend_update_step(self, grads: list[Tensor], variables: list[Any], learning_rate: Any) -> None:
        step = int(self.iterations) + 1
        lr, beta2 = float(learning_rate), 1 - step**-0.8 if self.beta2 is None else self.beta2
        for grad, each in zip(grads, variables, strict=True):
            rule = Rule(
                axes=self._axes(each),
                joint_eps=True,
                eps1=self.epsilon1,
                eps2=self.epsilon2,
                clip=self.clipping_threshold,
                beta1=self.beta1,
                parameter_scale=self.multiply_by_parameter_scale
                and not string_matching(each.path, self.exclude_from_parameter_scale),
                guarded=False,
            )
            numbers = Numbers(grad.new_tensor(lr), grad.new_tensor(beta2), grad.new_ones(()), ())
            index = self._get_variable_index(each)
            moments = tuple(moment.value for moment in self.moments[index])
            momentum = self.m[index].value if self.beta1 else None
            update_tensor(each.value, grad, moments, momentum, numbers, rule=rule, blocks=Blocks(each.value))


# The original has two variants of each; these are its second ones, for tf.keras.
LionV2 = Lion
AdaFactorBase = AdaFactorV1 = AdaFactorV2 = AdaFactor
_EXTENSIONS = {name: value for name, value in vars(extensions).items() if name.startswith("extend_with_")}
globals().update(_EXTENSIONS, **{f"{name}_v2": value for name, value in _EXTENSIONS.items()})
custom_objects = {"Adam": Adam, "AdaFactor": AdaFactor}
keras.utils.get_custom_objects().update(custom_objects)
__getattr__ = partial(absent, "bert4keras.optimizers", alternative=TENSORFLOW_ALONE)
