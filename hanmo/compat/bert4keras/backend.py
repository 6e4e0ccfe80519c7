"""bert4keras.backend: what scripts that only predict need, and the dtype that models are loaded in."""

from typing import Any

from hanmo.compat.bert4keras._absent import absent
from hanmo.compat.bert4keras.configs import get_weights_dtype, set_gelu, set_weights_dtype
from hanmo.compat.bert4keras.keras import keras

__all__ = ["get_weights_dtype", "is_tf_keras", "keras", "set_gelu", "set_weights_dtype"]

is_tf_keras = 0


def __getattr__(name: str) -> Any:
    """Stand in for what needs Keras or TensorFlow."""
    return absent("bert4keras.backend", name)
