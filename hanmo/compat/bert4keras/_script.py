"""Run a script whose `import bert4keras` and `import keras` give this package; all changes are undone at the end."""

import importlib
import io
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from hanmo.errors import MissingFile, Unsupported

_ROOT = "hanmo.compat.bert4keras"
_SERVED = ("bert4keras", "keras", "uniout")
# Modules of bert4keras before 0.6, and what replaced them.
_OLD = {
    "bert4keras.bert": "bert4keras.models, where build_transformer_model builds what build_bert_model did",
    "bert4keras.tokenizer": "bert4keras.tokenizers",
    "bert4keras.utils": "bert4keras.tokenizers and bert4keras.snippets",
    "bert4keras.train": "nothing: training is not supported",
}


def read_script(path: Path) -> bytes:
    """Read a script; raises MissingFile if there is none."""
    if not path.is_file():
        raise MissingFile(f"no script at {path}; give the path of a Python file")
    with io.open_code(str(path)) as file:
        return file.read()


def run_script(path: Path, arguments: Sequence[str] = ()) -> None:
    """Run a script as `python PATH ARGUMENTS` does, but with `served` imports; its errors are not caught."""
    read_script(path)
    before = sys.argv, sys.path[:]
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with served():
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def frames_of(path: Path, trace: TracebackType | None) -> TracebackType | None:
    """Drop the frames before those of a script; None if it has none, as for a syntax error."""
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    return trace


def line_of(path: Path, trace: TracebackType | None) -> int | None:
    """Return the line of the innermost frame of a script."""
    line = None
    while (trace := frames_of(path, trace)) is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return line


@contextmanager
def served() -> Iterator[None]:
    """Make `import bert4keras`, `keras` and `uniout` give this package inside the block, whatever is installed."""
    importer = _Importer()
    hidden = _remove_served()
    sys.meta_path.insert(0, importer)
    try:
        yield
    finally:
        sys.meta_path.remove(importer)
        _remove_served()
        sys.modules.update(hidden)


def _remove_served() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in _SERVED}


class _Importer(MetaPathFinder, Loader):
    """Imports our modules themselves, so that a class is the same object under both names."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] not in _SERVED:
            return None
        return ModuleSpec(fullname, self, is_package="." not in fullname)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = find_module(spec.name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has replaced it


def find_module(name: str) -> ModuleType:
    """Return the module for an old name; raises Unsupported for a module of bert4keras that is not here."""
    root, _, rest = name.partition(".")
    if root == "uniout":  # made Python 2 print Chinese
        return ModuleType(name)
    if root == "keras":
        return importlib.import_module(f"{_ROOT}.keras").module(name)
    here = sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))
    if rest and rest not in here:
        here_or_new = f"in 0.11.5 it is {_OLD[name]}" if name in _OLD else f"these are: {', '.join(here)}"
        raise Unsupported(f"the module {name} is not supported; {here_or_new}")
    return importlib.import_module(f"{_ROOT}.{rest}" if rest else _ROOT)
