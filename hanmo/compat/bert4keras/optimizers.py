"""bert4keras.optimizers: names that can be imported and say, when used, that training is not carried."""

from typing import Any

from hanmo.compat.bert4keras._absent import BERT4KERAS, absent

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    """Stand in for an optimizer."""
    return absent("bert4keras.optimizers", name, BERT4KERAS["optimizers"])
