"""bert4keras.layers: the layers of Keras, and those of 0.11.5, which take their place where the names are the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import keras.layers

from hanmo.compat.bert4keras._absent import absent
from hanmo.compat.bert4keras.graph import blocks, heads, sequences
from hanmo.compat.bert4keras.graph.layer import Layer

custom_objects = {name: getattr(module, name) for module in (heads, blocks, sequences) for name in module.__all__}
globals().update({name: value for name, value in vars(keras.layers).items() if not name.startswith("_")})
globals().update(custom_objects, Layer=Layer)
keras.utils.get_custom_objects().update(custom_objects)


def integerize_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function: the sizes of Keras 3's shapes are int or None."""
    return function


__getattr__ = partial(absent, "bert4keras.layers")
__all__ = [name for name in globals() if not name.startswith("_")]
