"""bert4keras.optimizers: names that can be imported and raise Unsupported when used."""

from functools import partial

from hanmo.compat.bert4keras._absent import BERT4KERAS, absent

__all__ = BERT4KERAS["optimizers"]
__getattr__ = partial(absent, "bert4keras.optimizers")
