"""The modules that a script imports by old names where it needs no Keras: those of this package."""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hanmo.errors import MissingFile, Unsupported

_ROOT = "hanmo.compat.bert4keras"
# Modules of bert4keras before 0.6, and what replaced them.
_OLD = {
    "bert4keras.bert": "bert4keras.models, where build_transformer_model builds what build_bert_model did",
    "bert4keras.tokenizer": "bert4keras.tokenizers",
    "bert4keras.utils": "bert4keras.tokenizers and bert4keras.snippets",
    "bert4keras.train": "nothing; bert4keras.optimizers has extend_with_piecewise_linear_lr",
}
PARTS = ("backend", "layers", "models", "optimizers", "snippets", "tokenizers")


@dataclass(frozen=True)
class Face:
    """What a script's imports give.

    served: names of packages.   find: gives a module of them by its name; raises Unsupported.
    models: the classes whose attributes models have.   keras: whether they are built by Keras.
    """

    served: tuple[str, ...]
    find: Callable[[str], ModuleType]
    models: Callable[[], tuple[type, ...]]
    keras: bool


def read_script(path: Path) -> bytes:
    """Read a script; raises MissingFile if there is none."""
    if not path.is_file():
        raise MissingFile(f"no script at {path}; give the path of a Python file")
    with io.open_code(str(path)) as file:
        return file.read()


def find_module(name: str) -> ModuleType:
    """Return the module for an old name; raises Unsupported for a module of bert4keras that is not here."""
    root, _, rest = name.partition(".")
    if root == "uniout":  # made Python 2 print Chinese
        return ModuleType(name)
    if root == "keras":
        return importlib.import_module(f"{_ROOT}.keras").module(name)
    check_part(name)
    return importlib.import_module(f"{_ROOT}.{rest}" if rest else _ROOT)


def check_part(name: str) -> None:
    """Raise Unsupported for a module that bert4keras 0.11.5 does not have."""
    if name != "bert4keras" and name.removeprefix("bert4keras.") not in PARTS:
        here_or_new = f"in 0.11.5 it is {_OLD[name]}" if name in _OLD else f"these are: {', '.join(PARTS)}"
        raise Unsupported(f"the module {name} is not supported; {here_or_new}")


def _models() -> tuple[type, ...]:
    from hanmo.compat.bert4keras.models import KerasModel, Transformer

    return KerasModel, Transformer


PLAIN = Face(("bert4keras", "keras", "uniout"), find_module, _models, keras=False)
"""Serves this package, without Keras: loading, predicting and writing."""
