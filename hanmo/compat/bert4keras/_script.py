"""Run a script whose `import bert4keras` and `import keras` give this package, or list what it uses without running it.

The list resolves names, attributes and keyword arguments in the text, and only those variables that hold a model.
"""

import ast
import importlib
import inspect
import io
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

from hanmo.compat.bert4keras._absent import TRAINING, Absent
from hanmo.compat.bert4keras.configs import KEYWORDS, REFUSED
from hanmo.errors import HanmoError, MissingFile, Unsupported

_ROOT = "hanmo.compat.bert4keras"
_SERVED = ("bert4keras", "keras", "uniout")
# Modules of bert4keras before 0.6, and what replaced them.
_OLD = {
    "bert4keras.bert": "bert4keras.models, where build_transformer_model builds what build_bert_model did",
    "bert4keras.tokenizer": "bert4keras.tokenizers",
    "bert4keras.utils": "bert4keras.tokenizers and bert4keras.snippets",
    "bert4keras.train": "nothing: training is not supported",
}
_BUILDERS = ("build_transformer_model", "load_model")
_TRAINING = ("compile", "fit", "fit_generator", "train_on_batch", "add_loss", "add_metric")
# Attributes that models have and their classes do not.
_OF_MODELS = """
    model encoder decoder network settings layer_map prefix trainable name input inputs output outputs input_names
""".split()
_MISSING = object()


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
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == str(path)]
    return lines[-1] if lines else None


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


class Finding(NamedTuple):
    """One use: its line, its name or what is wrong with it, and whether it is supported."""

    line: int
    text: str
    supported: bool


def check_script(path: Path) -> list[Finding]:
    """List what a script uses, by line. Raises MissingFile, and Unsupported for what is not Python 3."""
    try:
        tree = ast.parse(read_script(path), str(path))
    except SyntaxError as error:
        raise Unsupported(f"{path}:{error.lineno}: {error.msg}; is it Python 2? Hanmo runs Python 3") from None
    reader = _Reader()
    for node in ast.walk(tree):  # imports first: a function may precede the import that it needs
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            for alias in node.names:
                reader.imported(node.lineno, getattr(node, "module", None), alias)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            reader.assigned(node)
    reader.visit(tree)
    return sorted(reader.findings)


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.findings: set[Finding] = set()
        self.names: dict[str, tuple[str, Any]] = {}  # a name in the script → its full name, and the object
        self.models: set[str] = set()

    def imported(self, line: int, module: str | None, alias: ast.alias) -> None:
        """Record an import of a module, or of a name from a module."""
        root, name = (module or alias.name).split(".")[0], f"{module}.{alias.name}" if module else alias.name
        if root in ("tensorflow", "tf_keras"):
            self._add(line, f"{root}: Hanmo computes with PyTorch", False)
        if root not in ("bert4keras", "keras"):
            return
        try:
            value = found = find_module(module or name)
            if module is None and not alias.asname:
                self.names[root] = root, find_module(root)
            elif alias.name == "*":
                every = getattr(found, "__all__", ())
                self.names |= {each: (f"{module}.{each}", getattr(found, each)) for each in every}
            else:
                value = getattr(found, alias.name) if module else found
                self.names[alias.asname or alias.name] = name, value
            # Importing an Absent is supported; using it is not.
            self._add(line, f"{name}, a name that cannot be used" if isinstance(value, Absent) else name)
        except HanmoError as error:
            self._add(line, str(error), False)
        except AttributeError:
            self._add(line, f"{name}: there is no such name", False)

    def assigned(self, node: ast.Assign) -> None:
        name = self._resolve(node.value.func)[0] if isinstance(node.value, ast.Call) else ""
        if name.rpartition(".")[2] in _BUILDERS or name.endswith("keras.models.Model"):
            self.models |= {target.id for target in node.targets if isinstance(target, ast.Name)}

    def visit_Name(self, node: ast.Name | ast.Attribute) -> None:
        """Record the use of an imported name, of a chain of attributes that starts with one, or of a model."""
        line, (name, value) = node.lineno, self._resolve(node)
        if name and isinstance(node.ctx, ast.Load):
            if isinstance(value, Absent):
                self._add(line, f"{value.absent_name}: {value.alternative}", False)
            elif value is _MISSING:
                self._add(line, f"{name}: there is no such name", False)
            elif not inspect.ismodule(value):
                self._add(line, name)
            return
        if isinstance(node, ast.Attribute) and self._is_model(node.value) and not node.attr.startswith("__"):
            from hanmo.compat.bert4keras.models import KerasModel, Transformer

            name, value = ast.unparse(node), getattr(KerasModel, node.attr, getattr(Transformer, node.attr, _MISSING))
            if isinstance(value, Absent):
                self._add(line, f"{name}: {value.alternative}", False)
            elif value is _MISSING and node.attr not in _OF_MODELS:
                self._add(line, f"{name}: models have no {node.attr} here", False)
            else:
                self._add(line, name)
        self.generic_visit(node)

    visit_Attribute = visit_Name

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function, (name, value) = node.func, self._resolve(node.func)
        keywords = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
        if name.endswith(".build_transformer_model"):
            for keyword in keywords:
                if keyword in REFUSED:
                    self._add(node.lineno, f"{keyword}=: {REFUSED[keyword]}", False)
                elif keyword not in KEYWORDS:
                    self._add(node.lineno, f"{keyword}= is ignored")
        elif name and callable(value) and not isinstance(value, Absent):
            parameters = inspect.signature(value).parameters
            if all(each.kind != each.VAR_KEYWORD for each in parameters.values()):
                for keyword in set(keywords) - set(parameters):
                    self._add(node.lineno, f"{keyword}=: {name} has no such argument", False)
        elif isinstance(function, ast.Attribute) and function.attr in _TRAINING and not self._is_model(function.value):
            text = ast.unparse(function)
            if not text.startswith("re.") and not isinstance(function.value, ast.Constant):
                self._add(node.lineno, f"{text}: {TRAINING}", False)

    def _is_model(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute) and node.attr in ("model", "encoder", "decoder"):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.models

    def _resolve(self, node: ast.AST) -> tuple[str, Any]:
        """Follow a chain of attributes to (full name, object): ("", None) if it is not ours, _MISSING if unknown."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, ("", None))
        if isinstance(node, ast.Attribute):
            name, value = self._resolve(node.value)
            if name and (inspect.ismodule(value) or inspect.isclass(value) or isinstance(value, Absent)):
                try:
                    return f"{name}.{node.attr}", getattr(value, node.attr)
                except (AttributeError, HanmoError):
                    return f"{name}.{node.attr}", _MISSING
        return "", None

    def _add(self, line: int, text: str, supported: bool = True) -> None:
        self.findings.add(Finding(line, text, supported))
