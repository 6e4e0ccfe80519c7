"""The modules that a script imports by old names where it needs Keras: bert4keras's, and Keras 3 with Keras 2's habits.

Keras itself is not changed: a script sees modules of its own, with the contents of Keras's and what takes their place.
"""

from functools import partial
from types import ModuleType
from typing import Any

import keras

from hanmo.compat.bert4keras import snippets
from hanmo.compat.bert4keras._absent import Absent
from hanmo.compat.bert4keras._modules import Face, check_part, find_module
from hanmo.compat.bert4keras.graph import backend, layers, model, models, optimizers, saving, strategy
from hanmo.errors import Unsupported

# Keras asks whether TensorFlow is installed by importing it; within a script that would give the module below.
keras.src.utils.module_utils.tensorflow._available = False

TENSORFLOW = (
    "Hanmo computes with PyTorch; delete what sets TensorFlow up, and pretrain with `hanmo pack` and `hanmo pretrain`"
)
_MADE: dict[str, ModuleType] = {}
# Imported here: within a script, `import keras` would give them the modules below.
_PARTS: dict[str, ModuleType] = {
    "backend": backend,
    "layers": layers,
    "models": models,
    "optimizers": optimizers,
    "snippets": snippets,
}
_MODELS = {
    "Model": model.Model,
    "Sequential": model.Sequential,
    "load_model": saving.load_model,
    "save_model": saving.save_model,
}
# Modules of Keras 2, with those inside them → where Keras 3 has what they held.
_OLD = {"keras.engine": "keras.layers", "keras.layers.": "keras.layers", "keras.utils.": "keras.utils"}


def find(name: str) -> ModuleType:
    """Return the module for an old name; raises Unsupported for one that is not here."""
    if name not in _MADE:
        _MADE[name] = _make(name.replace("tensorflow.keras", "keras").replace("tf_keras", "keras"))
    return _MADE[name]


def _make(name: str) -> ModuleType:
    root, _, part = name.partition(".")
    if root == "keras":
        return _keras(name)
    if root == "tensorflow":
        return _tensorflow(name)
    if name in ("bert4keras", "bert4keras.tokenizers", "uniout"):
        return find_module(name)
    check_part(name)
    return _like(_PARTS[part], name, {"keras": find("keras"), "K": backend.K})


def _keras(name: str) -> ModuleType:
    if name == "keras.backend":
        return backend.K
    found: Any = keras
    new = next((new for old, new in _OLD.items() if name.startswith(old)), name)
    for part in new.split(".")[1:]:
        if not isinstance(found := getattr(found, part, None), ModuleType):
            raise Unsupported(f"Keras 3 has no module {name}; its own are those of keras.io, such as keras.layers")
    changes: dict[str, Any] = {}
    if name in ("keras", "keras.models") or name.startswith("keras.engine"):
        changes = dict(_MODELS)
    if name == "keras.callbacks":
        changes = {"ModelCheckpoint": saving.ModelCheckpoint}
    if name == "keras":
        changes |= {part: find(f"keras.{part}") for part in ("backend", "callbacks", "layers", "models")}
    return _like(found, name, changes)


def _tensorflow(name: str) -> ModuleType:
    contents: dict[str, Any] = {
        "tensorflow": {"keras": find("keras"), "__version__": "2.15.1"},  # the last that bert4keras runs on
        "tensorflow.distribute": {"MirroredStrategy": strategy.OneDevice},
    }
    if name not in contents:
        raise Unsupported(f"the module {name} is not supported: {TENSORFLOW}")
    made = ModuleType(name, "What scripts for bert4keras use of TensorFlow.")
    made.__dict__.update(contents[name], __path__=[], __getattr__=partial(_absent_of_tensorflow, name))
    if name == "tensorflow":
        made.__dict__["distribute"] = find("tensorflow.distribute")
    return made


def _absent_of_tensorflow(module: str, name: str) -> Absent:
    if name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return Absent(f"{module}.{name}", TENSORFLOW)


def _like(module: ModuleType, name: str, changes: dict[str, Any]) -> ModuleType:
    """Make a module with the contents of another and changes to them."""
    made = ModuleType(name, module.__doc__)
    made.__dict__.update({key: value for key, value in vars(module).items() if key not in ("__name__", "__spec__")})
    made.__dict__.update(changes)
    return made


FACE = Face(
    ("bert4keras", "keras", "tf_keras", "tensorflow", "uniout"),
    find,
    lambda: (models.Transformer, model.Model),
    keras=True,
)
"""Serves Keras 3 over torch with Hanmo's networks as layers."""
