"""What `keras` is to a script that only predicts: loading what was saved, choosing outputs, and names that refuse.

Any `keras.x.y` can be imported; what is not here refuses to be used. Knows nothing of how it comes under its name.
"""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

from hanmo.compat.bert4keras._absent import KERAS_LAYERS, Absent, absent
from hanmo.errors import Unsupported

__all__ = ["keras", "module"]


class Handle(Absent):
    """An input or output of a model, by which `keras.models.Model` chooses; it cannot be computed with."""

    def __init__(self, model: Any, kind: str, index: int) -> None:
        super().__init__(f"computing with a model's {kind}", "use torch on what model.network computes")
        self.model, self.kind, self.index = model, kind, index


def choose(inputs: Any, outputs: Any) -> Any:
    """Make a model of some outputs of another: `keras.models.Model(model.inputs, model.outputs[0])`.

    Raises Unsupported for anything else, which would be a new graph.
    """
    chosen = outputs if isinstance(outputs, list | tuple) else [outputs]
    given = inputs if isinstance(inputs, list | tuple) else [inputs]
    handles = [each for each in chosen if isinstance(each, Handle) and each.kind == "output"]
    models = {id(each.model): each.model for each in (*handles, *given) if isinstance(each, Handle)}
    if len(models) != 1 or len(handles) != len(chosen) or not handles:
        raise Unsupported(
            "keras.models.Model is carried for the inputs and outputs of one bert4keras model; for a new graph put "
            "a torch.nn.Module on what model.network computes"
        )
    model = handles[0].model
    if len(given) != len(model.inputs):
        raise Unsupported(f"the model has {len(model.inputs)} inputs and {len(given)} are given; give model.inputs")
    old = model.settings.chosen
    indices = [each.index if old is None else old[each.index] for each in handles]
    if [each.index for each in handles] == list(range(len(model.outputs))):
        return model  # what computes it in int8 would be lost with a new one
    return type(model)(model.network, replace(model.settings, chosen=indices))


def load_model(filepath: Any, custom_objects: Any = None, compile: bool = False) -> Any:
    """Load what `model.save` wrote; the other arguments are Keras's, taken and not used."""
    from hanmo.compat.bert4keras._saving import load_model as load

    return load(filepath)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing, where Keras would have something to clean up or to switch."""


def _input(*args: Any, **kwargs: Any) -> Any:
    from hanmo.compat.bert4keras.layers import Input

    return Input(*args, **kwargs)


_CARRIED: dict[str, dict[str, Callable[..., Any]]] = {
    "keras.models": {"Model": choose, "load_model": load_model},
    "keras.layers": {"Input": _input},
    "keras.backend": {"clear_session": _nothing, "set_learning_phase": _nothing},
    "keras": {"Model": choose, "Input": _input},
}
_MODULES: dict[str, ModuleType] = {}


def module(name: str) -> ModuleType:
    """Give the stand-in of keras or one of its modules, always the same one."""
    if name not in _MODULES:
        made = _MODULES[name] = ModuleType(name, f"What Hanmo carries of {name}.")
        made.__path__ = []
        for key, value in _CARRIED.get(name, {}).items():
            setattr(made, key, value)
        setattr(made, "__getattr__", lambda key: absent(name, key))  # noqa: B010 (a module's, not an attribute's type)
        if name == "keras.layers":
            made.__all__ = ["Input", *KERAS_LAYERS]  # type: ignore[attr-defined]
    return _MODULES[name]


keras = module("keras")
keras.__version__ = "2.3.1"  # type: ignore[attr-defined]
for _part in ("models", "layers", "backend"):
    setattr(keras, _part, module(f"keras.{_part}"))
