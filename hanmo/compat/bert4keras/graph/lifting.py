"""Lift functions of torch tensors to what scripts pass them: Keras's symbolic tensors, and values that come later.

A function that is given a symbolic tensor becomes an operation of the Keras graph. `Deferred` stands for a value that
is known when a function made by `K.function` is called.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from keras import KerasTensor

__all__ = ["FUNCTIONS", "Deferred", "Values", "is_symbolic", "lift", "tensor"]


class Values(dict[int, Any]):
    """The values of placeholders, and of what was computed from them, by their id()."""

    placeholders: list[Any]

    def of_graph(self, outputs: list[KerasTensor]) -> list[Any]:
        """Compute symbolic tensors, all in one run of the graph."""
        inputs = [each for each in self.placeholders if isinstance(each, KerasTensor)]
        found: list[Any] = keras.Function(inputs, outputs)([self[id(each)] for each in inputs])
        return found


FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Every lifted function, by its name."""


class Deferred:
    """A value computed from the values of placeholders; torch's and K's functions of it are deferred too."""

    def __init__(self, compute: Callable[[Values], Any]) -> None:
        self._compute = compute

    def value(self, values: Values) -> Any:
        if id(self) not in values:
            values[id(self)] = self._compute(values)
        return values[id(self)]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> "Deferred":
        return cls.call(function, *args, **(kwargs or {}))

    @classmethod
    def call(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> "Deferred":
        """Defer a call of a function."""

        def compute(values: Values) -> Any:
            def known(each: Any) -> Any:
                if isinstance(each, KerasTensor):
                    return values.of_graph([each])[0]
                return each.value(values) if isinstance(each, Deferred) else each

            here, named = keras.tree.map_structure(known, (args, kwargs))
            return function(*here, **named)

        return cls(compute)

    def __getitem__(self, index: Any) -> "Deferred":
        return self.call(lambda value: value[index], self)

    def __getattr__(self, name: str) -> "Deferred":
        if name.startswith("__"):
            raise AttributeError(name)
        return self.call(getattr, self, name)


def _operator(name: str) -> Callable[..., Deferred]:
    def operate(*operands: Any) -> Deferred:
        return Deferred.call(getattr(torch.Tensor, name), *operands)

    return operate


for _name in "add radd sub rsub mul rmul truediv rtruediv pow rpow neg matmul".split():
    setattr(Deferred, f"__{_name}__", _operator(f"__{_name}__"))


@keras.saving.register_keras_serializable("hanmo")
class BackendFunction(keras.Operation):
    """An operation of the Keras graph that calls a lifted function."""

    def __init__(self, function: str, name: str | None = None) -> None:
        super().__init__(name=name)
        self.function = function

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return FUNCTIONS[self.function](*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"function": self.function, "name": self.name}


def lift(function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Let a function of torch tensors take NumPy arrays, Variables, symbolic tensors and deferred values too.

    name: in FUNCTIONS; empty: the function's own.
    """
    name = name or function.__name__

    @functools.wraps(function)
    def lifted(*args: Any, **kwargs: Any) -> Any:
        given = keras.tree.flatten((args, kwargs))
        if any(isinstance(each, Deferred) for each in given):
            return Deferred.call(lifted, *args, **kwargs)
        if any(isinstance(each, KerasTensor) for each in given):
            return BackendFunction(name)(*args, **kwargs)
        args, kwargs = keras.tree.map_structure(tensor, (args, kwargs))
        return function(*args, **kwargs)

    lifted.__name__ = lifted.__qualname__ = name
    FUNCTIONS[name] = lifted
    return lifted


def tensor(value: Any) -> Any:
    """Return the tensor of a Variable or an array; float64 arrays become Keras's float type. Others are returned."""
    if isinstance(value, keras.Variable):
        return value.value
    if isinstance(value, np.ndarray):
        dtype = keras.config.floatx() if value.dtype == np.float64 else None
        return keras.ops.convert_to_tensor(value, dtype)
    return value


def is_symbolic() -> bool:
    """Whether Keras only asks for shapes now."""
    return bool(keras.src.backend.in_stateless_scope())
