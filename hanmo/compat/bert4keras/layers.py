"""bert4keras.layers: `Input`; all other names can be imported and raise Unsupported when used."""

from typing import Any

from hanmo.compat.bert4keras._absent import BERT4KERAS, absent
from hanmo.compat.bert4keras.configs import Input
from hanmo.compat.bert4keras.keras import keras

__all__ = ["Input", "keras", *BERT4KERAS["layers"]]


def __getattr__(name: str) -> Any:
    """Stand in for a layer of Keras or bert4keras."""
    return absent("bert4keras.layers", name)
