"""Training in the memory you have: optimizers, data and the loop behind `hanmo finetune` and `hanmo pretrain`.

fit(model, data, out=…, settings=Settings(…))    train a model on batches; imported on first use, with torch
Settings, TrainArgs                              the arguments of a run (two names of one class)
"""

from typing import TYPE_CHECKING, Any

from hanmo.training.args import TrainArgs
from hanmo.training.args import TrainArgs as Settings

if TYPE_CHECKING:
    from hanmo.training.loop import fit

__all__ = ["Settings", "TrainArgs", "fit"]


def __getattr__(name: str) -> Any:
    if name != "fit":
        raise AttributeError(f"module 'hanmo.training' has no attribute {name!r}; it has {', '.join(__all__)}")
    from hanmo.training.loop import fit

    return fit
