"""bert4keras's extensions of optimizers: subclasses that change what a Keras optimizer writes into the weights.

An extension runs the update of the class that it extends. Changes are made in the order of the original: that of the
innermost extension first. All weights are updated at once.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import keras
import torch
from torch import Tensor

from hanmo.compat.bert4keras.graph.backend import batch_get_value, batch_set_value, piecewise_linear
from hanmo.compat.bert4keras.snippets import string_matching

Change = Callable[[list[Any], list[Tensor], list[Tensor]], None]
"""Changes deltas in place, given the Variables, their values before the update, and the deltas."""


def state_of(optimizer: Any, name: str, variables: Iterable[Any]) -> list[Tensor]:
    """Return the state of this name, which `build` has made by `add_optimizer_variables`."""
    slots = getattr(optimizer, name)
    return [slots[optimizer._get_variable_index(each)].value for each in variables]


class _Extended:
    """What extensions add to a Keras optimizer. _defaults: of the arguments that an extension adds."""

    _defaults: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name, default) for name, default in self._every_default().items()}
        super().__init__(*args, **kwargs)
        for name, value in given.items():
            setattr(self, name, value)
        self._changes: list[Change] = []

    @classmethod
    def _every_default(cls) -> dict[str, Any]:
        return {name: value for each in cls.__mro__ for name, value in vars(each).get("_defaults", {}).items()}

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return config | {name: getattr(self, name) for name in self._every_default()}

    def _decayed_lr(self: Any) -> float:
        return float(self.learning_rate)

    def _backend_update_step(self, grads: list[Tensor], variables: list[Any], learning_rate: Any) -> None:
        self._update(list(grads), variables)

    def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
        """Run the optimizer that is extended."""
        with self._writing(variables):
            super()._backend_update_step(grads, variables, self._decayed_lr())  # type: ignore[misc]

    @contextlib.contextmanager
    def _changed(self, change: Change) -> Iterator[None]:
        """Apply a change to what the block writes into the weights."""
        self._changes.append(change)
        try:
            yield
        finally:
            self._changes.pop()

    @contextlib.contextmanager
    def _writing(self, variables: list[Any]) -> Iterator[None]:
        """Write into the weights once, through the changes that are around the block."""
        weights = [each.value for each in variables]
        before = [each.clone() for each in weights] if self._changes else []
        yield
        if self._changes:
            deltas = list(torch._foreach_sub(weights, before))
            for change in reversed(self._changes):
                change(variables, before, deltas)
            torch._foreach_add_(before, deltas)
            torch._foreach_copy_(weights, before)


def _extension(**defaults: Any) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Decorate a function from an optimizer to its extension, whose arguments have these defaults."""

    def decorate(extend: Callable[[Any], Any]) -> Callable[..., Any]:
        @functools.wraps(extend)
        def extend_with(BaseOptimizer: Any, name: str | None = None) -> Any:
            if not issubclass(BaseOptimizer, _Extended):
                BaseOptimizer = type(BaseOptimizer.__name__, (_Extended, BaseOptimizer), {})
            extended = extend(BaseOptimizer)
            extended._defaults = defaults
            extended.__name__ = name or extended.__name__
            keras.utils.get_custom_objects()[extended.__name__] = extended
            return extended

        return extend_with

    return decorate


@_extension(weight_decay_rate=0.01, exclude_from_weight_decay=[])
def extend_with_weight_decay(BaseOptimizer: Any) -> Any:
    """Subtract lr · weight_decay_rate · weight, where no pattern of exclude_from_weight_decay is in the name."""

    class NewOptimizer(BaseOptimizer):
        def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
            def decay(variables: list[Any], before: list[Tensor], deltas: list[Tensor]) -> None:
                kept = [not string_matching(each.path, self.exclude_from_weight_decay) for each in variables]
                if any(kept):
                    factor = -self._decayed_lr() * self.weight_decay_rate
                    torch._foreach_add_(_chosen(deltas, kept), _chosen(before, kept), alpha=factor)

            with self._changed(decay):
                super()._update(grads, variables)

    return NewOptimizer


@_extension(exclude_from_layer_adaptation=[])
def extend_with_layer_adaptation(BaseOptimizer: Any) -> Any:
    """Scale each weight's update to the norm of the weight times lr (LAMB, arXiv 1904.00962)."""

    class NewOptimizer(BaseOptimizer):
        def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
            def adapt(variables: list[Any], before: list[Tensor], deltas: list[Tensor]) -> None:
                kept = [not string_matching(each.path, self.exclude_from_layer_adaptation) for each in variables]
                rate = max(self._decayed_lr(), keras.config.epsilon())
                for weight, delta in zip(_chosen(before, kept), _chosen(deltas, kept), strict=True):
                    weight_norm, step_norm = weight.norm(), delta.norm() / rate
                    delta *= torch.where((weight_norm > 0) & (step_norm > 0), weight_norm / step_norm, 1.0)

            with self._changed(adapt):
                super()._update(grads, variables)

    return NewOptimizer


@_extension(lr_schedule={0: 1})
def extend_with_piecewise_linear_lr(BaseOptimizer: Any) -> Any:
    """Multiply the learning rate by a piecewise linear function of the step, such as {1000: 1, 2000: 0.1}."""

    class NewOptimizer(BaseOptimizer):
        def _decayed_lr(self) -> float:
            schedule = {int(step): factor for step, factor in self.lr_schedule.items()}
            return float(super()._decayed_lr() * piecewise_linear(int(self.iterations), schedule))

    return NewOptimizer


@_extension(grad_accum_steps=2)
def extend_with_gradient_accumulation(BaseOptimizer: Any) -> Any:
    """Update at every grad_accum_steps-th step, by the mean of the gradients since the last update.

    As in the original the first update is at step 0, by a gradient of zeros, and steps count batches.
    """

    class NewOptimizer(BaseOptimizer):
        def build(self, variables: list[Any]) -> None:
            if not self.built:
                super().build(variables)
                self.ag = self.add_optimizer_variables(variables, "ag")

        def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
            sums = state_of(self, "ag", variables)
            if int(self.iterations) % self.grad_accum_steps == 0:
                super()._update(list(torch._foreach_div(sums, self.grad_accum_steps)), variables)
                torch._foreach_zero_(sums)
            else:
                with self._writing(variables):
                    pass
            torch._foreach_add_(sums, grads)

    return NewOptimizer


@_extension(steps_per_slow_update=5, slow_step_size=0.5)
def extend_with_lookahead(BaseOptimizer: Any) -> Any:
    """Every steps_per_slow_update steps, go back to slow weights, which follow by slow_step_size (arXiv 1907.08610).

    As in the original the slow weights start as zeros, and follow at step 0 already.
    """

    class NewOptimizer(BaseOptimizer):
        def build(self, variables: list[Any]) -> None:
            if not self.built:
                super().build(variables)
                self.slow_var = self.add_optimizer_variables(variables, "slow_var")

        def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
            super()._update(grads, variables)
            slow, weights = state_of(self, "slow_var", variables), [each.value for each in variables]
            with self._writing(variables):
                if int(self.iterations) % self.steps_per_slow_update == 0:
                    torch._foreach_lerp_(slow, weights, self.slow_step_size)
                    torch._foreach_copy_(weights, slow)

    return NewOptimizer


@_extension(include_in_lazy_optimization=[])
def extend_with_lazy_optimization(BaseOptimizer: Any) -> Any:
    """Leave rows whose gradient is 0 as they are, of weights whose names match include_in_lazy_optimization."""

    class NewOptimizer(BaseOptimizer):
        def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
            def skip(variables: list[Any], before: list[Tensor], deltas: list[Tensor]) -> None:
                for each, grad, delta in zip(variables, grads, deltas, strict=True):
                    if string_matching(each.path, self.include_in_lazy_optimization):
                        delta *= (grad != 0).any(-1, keepdim=True)

            with self._changed(skip):
                super()._update(grads, variables)

    return NewOptimizer


@_extension(ema_momentum=0.999)
def extend_with_exponential_moving_average(BaseOptimizer: Any) -> Any:
    """Keep the moving average of the weights."""

    class NewOptimizer(BaseOptimizer):
        def build(self, variables: list[Any]) -> None:
            if not self.built:
                super().build(variables)
                self.model_weights = variables
                self.ema_weights = self.add_optimizer_variables(variables, "ema")

        def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
            super()._update(grads, variables)
            averages = state_of(self, "ema_weights", variables)
            torch._foreach_lerp_(averages, [each.value for each in variables], 1 - self.ema_momentum)

        def apply_ema_weights(self, bias_correction: bool = True) -> None:
            """Keep the weights, and put their averages in."""
            self.old_weights = batch_get_value(self.model_weights)
            scale = 1 - self.ema_momentum ** int(self.iterations) if bias_correction else 1
            averages = [each / scale for each in batch_get_value(self.ema_weights)]
            batch_set_value(zip(self.model_weights, averages, strict=True))

        def reset_old_weights(self) -> None:
            """Put the weights that `apply_ema_weights` kept back."""
            batch_set_value(zip(self.model_weights, self.old_weights, strict=True))

    return NewOptimizer


@_extension(paramwise_lr_schedule={})
def extend_with_parameter_wise_lr(BaseOptimizer: Any) -> Any:
    """Multiply the updates of weights by factors, given for parts of their names."""

    class NewOptimizer(BaseOptimizer):
        def _update(self, grads: list[Tensor], variables: list[Any]) -> None:
            def scale(variables: list[Any], before: list[Tensor], deltas: list[Tensor]) -> None:
                for each, delta in zip(variables, deltas, strict=True):
                    for part, factor in self.paramwise_lr_schedule.items():
                        if part in each.path:
                            delta *= factor

            with self._changed(scale):
                super()._update(grads, variables)

    return NewOptimizer


def _chosen(tensors: list[Tensor], kept: list[bool]) -> list[Tensor]:
    return [each for each, keep in zip(tensors, kept, strict=True) if keep]
