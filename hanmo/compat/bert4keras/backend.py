"""bert4keras.backend: what scripts that only predict need, and the dtype that models are loaded in."""

from functools import partial

from hanmo.compat.bert4keras._absent import absent
from hanmo.compat.bert4keras.configs import get_weights_dtype, set_gelu, set_weights_dtype
from hanmo.compat.bert4keras.keras import keras

__all__ = ["get_weights_dtype", "is_tf_keras", "keras", "set_gelu", "set_weights_dtype"]

is_tf_keras = 0
__getattr__ = partial(absent, "bert4keras.backend")
