"""Hanmo 翰墨: Chinese Transformer language models, from the original checkpoints, in PyTorch.

    load(path)          a checkpoint in any format that Hanmo reads, as a model with its configuration; or a task
    open_writer(path)   the same for writing on a CPU with small weights, without torch
    save(model, path)   as a Hanmo folder, a TensorFlow checkpoint or a Hugging Face folder
    inspect(path)       what a checkpoint is, without loading it
    errors              everything that Hanmo raises on purpose

Names are imported when they are first used, so `import hanmo` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanmo import errors
    from hanmo.checkpoint.inspect import inspect
    from hanmo.checkpoint.save import save
    from hanmo.loading import load
    from hanmo.pipeline import open_writer

__all__ = ["__version__", "errors", "inspect", "load", "open_writer", "save"]

__version__ = "0.2.0"

_HOMES = {
    "inspect": "hanmo.checkpoint.inspect",
    "load": "hanmo.tasks.pipeline",  # hanmo.loading.load, and the folders of tasks
    "open_writer": "hanmo.pipeline",
    "save": "hanmo.checkpoint.save",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("hanmo.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'hanmo' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
