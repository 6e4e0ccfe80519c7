"""The stand-in for `keras` in scripts that only predict: load a saved model, select outputs of a model.

Any `keras.x.y` can be imported; names that are not supported raise Unsupported when used.
"""

from functools import partial
from types import ModuleType
from typing import Any

from hanmo.compat.bert4keras._absent import KERAS_LAYERS, absent
from hanmo.compat.bert4keras._model import load_model, select_outputs
from hanmo.compat.bert4keras.configs import Input

__all__ = ["keras", "module"]

_SUPPORTED: dict[str, dict[str, Any]] = {
    "keras.models": {"Model": select_outputs, "load_model": load_model},
    "keras.layers": {"Input": Input, "__all__": ["Input", *KERAS_LAYERS]},
    "keras.backend": dict.fromkeys(("clear_session", "set_learning_phase"), lambda *arguments: None),
    "keras": {"Model": select_outputs, "Input": Input, "__version__": "2.3.1"},
}
_MODULES: dict[str, ModuleType] = {}


def module(name: str) -> ModuleType:
    """Return the stand-in for keras or one of its modules, always the same one."""
    if name not in _MODULES:
        made = _MODULES[name] = ModuleType(name, f"What Hanmo supports of {name}.")
        made.__dict__.update(_SUPPORTED.get(name, {}), __path__=[], __getattr__=partial(absent, name))
    return _MODULES[name]


keras = module("keras")
keras.__dict__.update({part: module(f"keras.{part}") for part in ("models", "layers", "backend")})
