"""Run a script that imports bert4keras and keras, and serve it this package under those names.

Knows Python's import system and how a script is started; nothing of models. Everything is put back at the end.
"""

import importlib
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from hanmo.errors import MissingFile, Unsupported

__all__ = ["frames_of", "line_of", "read_script", "run_script", "served"]

_ROOT = "hanmo.compat.bert4keras"
_SERVED = ("bert4keras", "keras", "uniout")
# Modules of bert4keras before 0.6, and what had become of them by then.
OLD = {
    "bert4keras.bert": "bert4keras.models, where build_transformer_model builds what build_bert_model did",
    "bert4keras.tokenizer": "bert4keras.tokenizers",
    "bert4keras.utils": "bert4keras.tokenizers and bert4keras.snippets",
    "bert4keras.train": "nothing: training is not carried",
}


def read_script(path: Path) -> bytes:
    """Read a script's text; raises MissingFile if there is none."""
    if not path.is_file():
        raise MissingFile(f"no script at {path}; give the path of a Python file")
    with io.open_code(str(path)) as file:
        return file.read()


def run_script(path: Path, arguments: Sequence[str] = ()) -> None:
    """Run a script as `python PATH ARGUMENTS` does, but with `served` imports; its errors come through."""
    text = read_script(path)
    main = ModuleType("__main__")
    main.__dict__.update(__file__=str(path), __builtins__=__builtins__, __cached__=None)
    before = sys.argv, sys.path[:], sys.modules["__main__"]
    sys.argv, sys.modules["__main__"] = [str(path), *arguments], main
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with served():
            exec(compile(text, str(path), "exec", dont_inherit=True), main.__dict__)
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = before


def frames_of(path: Path, trace: TracebackType | None) -> TracebackType | None:
    """Drop the frames before a script's own; None if it has none, as for a mistake in its syntax."""
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    return trace


def line_of(path: Path, trace: TracebackType | None) -> int | None:
    """Tell the innermost line of a script's own in a traceback."""
    line = None
    while (trace := frames_of(path, trace)) is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return line


@contextmanager
def served() -> Iterator[None]:
    """Serve `import bert4keras`, `keras` and `uniout` from here while the block runs, whatever is installed."""
    finder = _Finder()
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in _SERVED}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in _SERVED]:
            del sys.modules[name]
        sys.modules.update(hidden)


class _Finder(MetaPathFinder):
    """Finds our modules under the old names."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] not in _SERVED:
            return None
        return ModuleSpec(fullname, _Loader(), is_package="." not in fullname)


class _Loader(Loader):
    """Gives the modules themselves, so that a class is the same under both names."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._module = find_module(spec.name)
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's there


def find_module(name: str) -> ModuleType:
    """Give the module behind an old name; raises Unsupported for modules that are not here."""
    root, _, rest = name.partition(".")
    if root == "uniout":  # made Python 2 print Chinese
        return ModuleType(name)
    if root == "keras":
        return importlib.import_module(f"{_ROOT}.keras").module(name)
    if rest.startswith("_") or not (Path(__file__).parent / f"{rest or '__init__'}.py").is_file():
        raise Unsupported(
            f"the module {name} is not carried; "
            + (f"in 0.11.5 it is {OLD[name]}" if name in OLD else "those of 0.11.5 that are here: " + _modules())
        )
    return importlib.import_module(f"{_ROOT}.{rest}" if rest else _ROOT)


def _modules() -> str:
    return ", ".join(sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py")))
