"""bert4keras.backend, as far as scripts that read and write need it, and the dtype that models are loaded in."""

from typing import Any

from hanmo.compat.bert4keras._absent import BERT4KERAS, absent
from hanmo.compat.bert4keras.keras import keras
from hanmo.errors import ConfigError

__all__ = ["get_gelu", "get_weights_dtype", "is_tf_keras", "keras", "set_gelu", "set_weights_dtype"]

is_tf_keras = 0

_gelu = "erf"
_weights_dtype: str | None = None


def set_gelu(version: str) -> None:
    """Choose what "gelu" means in models built from now on: 'erf' (exact, the default) or 'tanh'.

    Raises ConfigError for any other name.
    """
    global _gelu
    if version.lower() not in ("erf", "tanh"):
        raise ConfigError(f"gelu version is {version!r}; expected 'erf' or 'tanh'")
    _gelu = version.lower()


def get_gelu() -> str:
    """Tell what "gelu" means now."""
    return _gelu


def set_weights_dtype(dtype: str | None) -> None:
    """Choose what the weights of models loaded from now on are; None: as the file has them.

    dtype: "float32", "bfloat16", or "int8" and "int4", in which models that write compute and others, which say so,
    stay as the file has them.   Raises ConfigError for any other.
    """
    global _weights_dtype
    if dtype not in (None, "float32", "bfloat16", "int8", "int4"):
        raise ConfigError(f"dtype of the weights is {dtype!r}; expected 'float32', 'bfloat16', 'int8', 'int4' or None")
    _weights_dtype = dtype


def get_weights_dtype() -> str | None:
    """Tell the dtype that weights are loaded in; None is the file's."""
    return _weights_dtype


def __getattr__(name: str) -> Any:
    """Stand in for what needs Keras or TensorFlow."""
    return absent("bert4keras.backend", name, BERT4KERAS["backend"])
