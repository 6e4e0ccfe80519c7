"""List what a script uses of bert4keras and Keras, by line, without running it.

The list resolves names, attributes and keyword arguments in the text, and only those variables that hold a model.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hanmo.compat.bert4keras._absent import NEEDS_KERAS, Absent
from hanmo.compat.bert4keras._modules import Face, read_script
from hanmo.compat.bert4keras.configs import KEYWORDS, REFUSED
from hanmo.errors import HanmoError, Unsupported

_BUILDERS = ("build_transformer_model", "load_model", "Model", "Sequential")
# Attributes that models have and their classes do not.
_OF_MODELS = """
    model encoder decoder network settings layer_map prefix trainable name input inputs output outputs input_names
    output_names initializer num_hidden_layers hidden_size vocab_size optimizer
""".split()
_TRAINING = ("compile", "fit", "fit_generator", "train_on_batch", "add_loss", "add_metric")
_MISSING = object()


class Finding(NamedTuple):
    """One use: its line, its name or what is wrong with it, and whether it is supported.

    of_keras: it is not supported because it is Keras's.
    """

    line: int
    text: str
    supported: bool
    of_keras: bool = False


def find_uses(path: Path, face: Face) -> list[Finding]:
    """List what a script uses, by line. Raises MissingFile, and Unsupported for what is not Python 3."""
    tree = _parse(path)
    reader = _Reader(face)
    for statement, name in _imports(tree):  # imports first: a function may precede the import that it needs
        reader.imported(statement.lineno, getattr(statement, "module", None), name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            reader.assigned(node)
    reader.visit(tree)
    return sorted(reader.findings)


def scripts_beside(path: Path) -> list[Path]:
    """List a script and the files in its folder that it imports, directly or through others."""
    found: dict[Path, None] = {}
    todo = [path]
    while todo:
        script = todo.pop()
        if script in found:
            continue
        found[script] = None
        names = {getattr(node, "module", None) or alias.name for node, alias in _imports(_parse(script))}
        beside = [path.parent / f"{name.replace('.', '/')}.py" for name in sorted(names)]
        todo += [each for each in beside if each.is_file()]
    return list(found)


def line_of_import(path: Path, name: str) -> int:
    """Return the line where a script imports a module; 1 where others do it."""
    imports = ((getattr(node, "module", None) or alias.name, node.lineno) for node, alias in _imports(_parse(path)))
    return next((line for module, line in imports if module == name), 1)


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(read_script(path), str(path))
    except SyntaxError as error:
        raise Unsupported(f"{path}:{error.lineno}: {error.msg}; is it Python 2? Hanmo runs Python 3") from None


def _imports(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, ast.alias]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            yield from ((node, alias) for alias in node.names)


class _Reader(ast.NodeVisitor):
    def __init__(self, face: Face) -> None:
        self.face = face
        self.findings: set[Finding] = set()
        self.names: dict[str, tuple[str, Any]] = {}  # a name in the script → its full name, and the object
        self.models: set[str] = set()

    def imported(self, line: int, module: str | None, alias: ast.alias) -> None:
        """Record an import of a module, or of a name from a module."""
        root, name = (module or alias.name).split(".")[0], f"{module}.{alias.name}" if module else alias.name
        if root in ("tensorflow", "tf_keras") and not self.face.keras:
            self._add(line, f"{root}: Hanmo computes with PyTorch", False, of_keras=True)
        if root not in self.face.served:
            return
        try:
            value = found = self.face.find(module or name)
            if module is None and not alias.asname:
                self.names[root] = root, self.face.find(root)
            elif alias.name == "*":
                every = getattr(found, "__all__", [each for each in vars(found) if not each.startswith("_")])
                self.names |= {each: (f"{module}.{each}", getattr(found, each)) for each in every}
            else:
                value = self._member(found, name) if module else found
                self.names[alias.asname or alias.name] = name, value
            # Importing an Absent is supported; using it is not.
            self._add(line, f"{name}, a name that cannot be used" if isinstance(value, Absent) else name)
        except HanmoError as error:
            self._add(line, str(error), False)
        except AttributeError:
            self._add(line, f"{name}: there is no such name", False)

    def _member(self, module: ModuleType, name: str) -> Any:
        """Return what `from module import …` gives: an attribute, or a module inside."""
        try:
            return getattr(module, name.rpartition(".")[2])
        except AttributeError:
            if not hasattr(module, "__path__"):
                raise
            return self.face.find(name)

    def assigned(self, node: ast.Assign) -> None:
        name = self._resolve(node.value.func)[0] if isinstance(node.value, ast.Call) else ""
        if name.rpartition(".")[2] in _BUILDERS:
            self.models |= {target.id for target in node.targets if isinstance(target, ast.Name)}

    def visit_Name(self, node: ast.Name | ast.Attribute) -> None:
        """Record the use of an imported name, of a chain of attributes that starts with one, or of a model."""
        line, (name, value) = node.lineno, self._resolve(node)
        if name and isinstance(node.ctx, ast.Load):
            if isinstance(value, Absent):
                self._add(line, f"{value.absent_name}: {value.alternative}", False, of_keras=True)
            elif value is _MISSING:
                self._add(line, f"{name}: there is no such name", False)
            elif not inspect.ismodule(value):
                self._add(line, name)
            return
        if isinstance(node, ast.Attribute) and self._is_model(node.value) and not node.attr.startswith("__"):
            name = ast.unparse(node)
            found = [getattr(each, node.attr) for each in self.face.models() if hasattr(each, node.attr)]
            if found and isinstance(found[0], Absent):
                self._add(line, f"{name}: {found[0].alternative}", False, of_keras=True)
            elif not found and node.attr not in _OF_MODELS:
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
            for keyword in _unknown(value, keywords):
                self._add(node.lineno, f"{keyword}=: {name} has no such argument", False)
        elif isinstance(function, ast.Attribute) and function.attr in _TRAINING and not self._is_model(function.value):
            text = ast.unparse(function)
            if not self.face.keras and not text.startswith("re.") and not isinstance(function.value, ast.Constant):
                self._add(node.lineno, f"{text}: {NEEDS_KERAS}", False, of_keras=True)

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

    def _add(self, line: int, text: str, supported: bool = True, of_keras: bool = False) -> None:
        self.findings.add(Finding(line, text, supported, of_keras))


def _unknown(function: Any, keywords: list[str]) -> list[str]:
    """List the keywords that a function does not take."""
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters
    except ValueError:  # a function of C
        return []
    if any(each.kind == each.VAR_KEYWORD for each in parameters.values()):
        return []
    return sorted(set(keywords) - set(parameters))
