"""bert4keras.optimizers: names that can be imported and raise Unsupported when used."""

from typing import Any

from hanmo.compat.bert4keras._absent import absent

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    """Stand in for an optimizer."""
    return absent("bert4keras.optimizers", name)
