"""What the layers of bert4keras share."""

from typing import Any

import keras
from keras import activations, initializers

__all__ = ["Layer"]


class Layer(keras.layers.Layer):
    """A layer that takes masks. _arguments: names of the arguments that are attributes."""

    _arguments: tuple[str, ...] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def _set(self, arguments: dict[str, Any]) -> None:
        """Keep arguments as attributes; initializers and activations may be given by name."""
        for name in set(self._arguments) & set(arguments):
            setattr(self, name, _convert(name, arguments[name], "get"))

    def _dense(self, units: int, size: int, activation: Any = None, **options: Any) -> Any:
        """Build a Dense layer for vectors of a size."""
        own = {name: getattr(self, name) for name in ("use_bias", "kernel_initializer") if hasattr(self, name)}
        dense = keras.layers.Dense(units, activation, dtype=self.dtype_policy, **own | options)
        dense.build((None, size))
        return dense

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {name: _convert(name, getattr(self, name), "serialize") for name in self._arguments}


def _convert(name: str, value: Any, function: str) -> Any:
    """Apply `get` or `serialize` to initializers and activations."""
    for module, ending in ((activations, "activation"), (initializers, "initializer")):
        if name.endswith(ending):
            convert = getattr(module, function)
            return [convert(each) for each in value] if isinstance(value, list) else convert(value)
    return value
