"""Training in the memory you have: optimizers, data and the loop behind `hanmo finetune` and `hanmo pretrain`.

    fit(model, data, out=…, settings=Settings(…))    train a model on batches
    Settings, TrainArgs                              the arguments of a run (two names of one class)

Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanmo.training.args import TrainArgs
    from hanmo.training.args import TrainArgs as Settings
    from hanmo.training.loop import fit

__all__ = ["Settings", "TrainArgs", "fit"]

_HOMES = {
    "Settings": ("hanmo.training.args", "TrainArgs"),
    "TrainArgs": ("hanmo.training.args", "TrainArgs"),
    "fit": ("hanmo.training.loop", "fit"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hanmo.training' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
