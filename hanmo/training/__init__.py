"""Training within the memory one has: optimizers, data and the loop.

    fit(model, data, out=…, settings=Settings(…))    train a model that one made, on batches that one made
    Settings                                         what a run is told

`hanmo finetune` and `hanmo pretrain` stand on these. Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanmo.training.args import Settings
    from hanmo.training.loop import fit

__all__ = ["Settings", "fit"]

_HOMES = {"Settings": "hanmo.training.args", "fit": "hanmo.training.loop"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hanmo.training' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
