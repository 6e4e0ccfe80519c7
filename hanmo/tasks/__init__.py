"""Tasks: fine-tune an encoder to classify, tag, extract or compare texts, and predict with it.

    fit("bert-folder", train="train.jsonl", dev="dev.jsonl", kind="classify", out="run")    → Fitted
    load("run").predict(texts)                                                              → results
    TaskConfig      what a task is, as data
    TaskArgs        arguments of the training loop, with defaults for fine-tuning
    TASKS           kind → the class that defines it

A new kind is one file here, one line in table.py and one in the tests. Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanmo.tasks.config import TaskArgs, TaskConfig
    from hanmo.tasks.finetune import fit
    from hanmo.tasks.pipeline import load
    from hanmo.tasks.table import TASKS

__all__ = ["TASKS", "TaskArgs", "TaskConfig", "fit", "load"]

_HOMES = {
    "TASKS": "hanmo.tasks.table",
    "TaskArgs": "hanmo.tasks.config",
    "TaskConfig": "hanmo.tasks.config",
    "fit": "hanmo.tasks.finetune",
    "load": "hanmo.tasks.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hanmo.tasks' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
