"""bert4keras.layers: `Input`; all other names can be imported and raise Unsupported when used."""

from functools import partial

from hanmo.compat.bert4keras._absent import BERT4KERAS, absent
from hanmo.compat.bert4keras.configs import Input
from hanmo.compat.bert4keras.keras import keras

__all__ = ["Input", "keras", *BERT4KERAS["layers"]]
__getattr__ = partial(absent, "bert4keras.layers")
