"""Read a script without running it, and list by line what it uses of bert4keras and Keras and whether that is carried.

Knows names, attributes and keyword arguments as they stand in the text; not what a variable holds, but for models that
are assigned by name.
"""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmo.compat.bert4keras._absent import KERAS_LAYERS, TRAINING, Absent
from hanmo.compat.bert4keras._script import find_module, read_script
from hanmo.compat.bert4keras.configs import KEYWORDS, REFUSED
from hanmo.errors import HanmoError, Unsupported

__all__ = ["Finding", "check_script"]

_ROOTS = ("bert4keras", "keras")
_OTHER = ("tensorflow", "tf_keras")
_FITTING = ("compile", "fit", "fit_generator", "train_on_batch", "add_loss", "add_metric")
_MISSING = object()


@dataclass(frozen=True, order=True)
class Finding:
    """One use: its line, what it is, and whether Hanmo carries it."""

    line: int
    text: str
    carried: bool


def check_script(path: Path) -> list[Finding]:
    """List what a script uses, by line. Raises MissingFile, and Unsupported for what is no Python 3."""
    try:
        tree = ast.parse(read_script(path), str(path))
    except SyntaxError as error:
        raise Unsupported(f"{path}:{error.lineno}: {error.msg}; is it Python 2? Hanmo runs Python 3") from None
    reader = _Reader()
    for node in ast.walk(tree):  # imports first: a function may stand before the import that it needs
        if isinstance(node, ast.Import | ast.ImportFrom):
            reader.imported(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            reader.assigned(node)
    reader.visit(tree)
    return sorted(set(reader.findings))


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.names: dict[str, tuple[str, Any]] = {}  # a script's name → the whole name, and what it is
        self.models: set[str] = set()

    def imported(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names if node.level == 0 else []:
                self._from(node.lineno, node.module or "", alias)
            return
        for alias in node.names:
            root = alias.name.split(".")[0]
            if root in _OTHER:
                self._add(node.lineno, f"{root}: Hanmo computes with PyTorch", False)
            elif root in _ROOTS and (found := self._module(node.lineno, alias.name)) is not None:
                self._add(node.lineno, alias.name)
                whole = alias.name if alias.asname else root
                self.names[alias.asname or root] = whole, found if alias.asname else find_module(root)

    def _from(self, line: int, module: str, alias: ast.alias) -> None:
        root = module.split(".")[0]
        if root in _OTHER:
            self._add(line, f"{root}: Hanmo computes with PyTorch", False)
        if root not in _ROOTS or (found := self._module(line, module)) is None:
            return
        if alias.name == "*":
            names = getattr(found, "__all__", KERAS_LAYERS)
            self.names |= {name: (f"{module}.{name}", getattr(found, name)) for name in names}
            self._add(line, f"{module}.*")
            return
        whole = f"{module}.{alias.name}"
        try:
            value = self._step(found, module, alias.name)
        except (AttributeError, HanmoError) as error:
            self._add(line, str(error) if isinstance(error, HanmoError) else f"{whole}: there is no such name", False)
            return
        # A name that refuses to be used may be imported: what counts is its use.
        self._add(line, f"{whole}{', a name that refuses to be used' if isinstance(value, Absent) else ''}")
        self.names[alias.asname or alias.name] = whole, value

    def assigned(self, node: ast.Assign) -> None:
        whole = self._resolve(node.value.func)[0] if isinstance(node.value, ast.Call) else ""
        if whole.rpartition(".")[2] in ("build_transformer_model", "load_model") or whole.endswith(
            "keras.models.Model"
        ):
            self.models |= {target.id for target in node.targets if isinstance(target, ast.Name)}

    def visit_Name(self, node: ast.Name) -> None:
        self._use(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not self._use(node):
            if self._is_model(node.value) and not node.attr.startswith("__"):
                self._model_use(node)
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        whole, value = self._resolve(node.func)
        if whole and callable(value) and not isinstance(value, Absent):
            for keyword in node.keywords:
                self._keyword(node.lineno, whole, value, keyword.arg)
        elif (
            isinstance(node.func, ast.Attribute) and node.func.attr in _FITTING and not self._is_model(node.func.value)
        ):
            text = ast.unparse(node.func)
            if not text.startswith("re.") and not isinstance(node.func.value, ast.Constant):
                self._add(node.lineno, f"{text}: {TRAINING}", False)

    def _use(self, node: ast.Name | ast.Attribute) -> bool:
        """Judge a name, or a chain of attributes that begins with an imported one."""
        whole, value = self._resolve(node)
        if not whole or not isinstance(node.ctx, ast.Load):
            return False
        if isinstance(value, Absent):
            self._add(node.lineno, f"{value.absent_name}: {value.way}", False)
        elif value is _MISSING:
            self._add(node.lineno, f"{whole}: there is no such name", False)
        elif not inspect.ismodule(value):
            self._add(node.lineno, whole)
        return True

    def _model_use(self, node: ast.Attribute) -> None:
        from hanmo.compat.bert4keras.models import KerasModel, Transformer

        name, owner = node.attr, KerasModel if hasattr(KerasModel, node.attr) else Transformer
        value = getattr(owner, name, _MISSING)
        kept = ("model", "encoder", "decoder", "network", "settings", "layer_map", "prefix", "trainable", "name")
        if isinstance(value, Absent):
            self._add(node.lineno, f"{ast.unparse(node)}: {value.way}", False)
        elif value is _MISSING and name not in kept:
            self._add(node.lineno, f"{ast.unparse(node)}: models have no {name} here", False)
        else:
            self._add(node.lineno, ast.unparse(node))

    def _is_model(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute) and node.attr in ("model", "encoder", "decoder"):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.models

    def _keyword(self, line: int, whole: str, value: Any, name: str | None) -> None:
        if name is None:
            return
        if whole.endswith(".build_transformer_model"):
            if name in REFUSED:
                self._add(line, f"{name}=: {REFUSED[name]}", False)
            elif name not in KEYWORDS:
                self._add(line, f"{name}= is ignored")
            return
        parameters = inspect.signature(value).parameters.values()
        if name not in {each.name for each in parameters} and all(each.kind != each.VAR_KEYWORD for each in parameters):
            self._add(line, f"{name}=: {whole} has no such argument", False)

    def _resolve(self, node: ast.AST) -> tuple[str, Any]:
        """Follow a chain of attributes to what it names: ("", None) if that is not ours, (…, _MISSING) if nothing."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, ("", None))
        if isinstance(node, ast.Attribute):
            whole, value = self._resolve(node.value)
            if whole and (inspect.ismodule(value) or inspect.isclass(value) or isinstance(value, Absent)):
                try:
                    return f"{whole}.{node.attr}", self._step(value, whole, node.attr)
                except (AttributeError, HanmoError):
                    return f"{whole}.{node.attr}", _MISSING
        return "", None

    def _step(self, value: Any, whole: str, name: str) -> Any:
        found = getattr(value, name)
        if inspect.ismodule(value) and isinstance(found, Absent):
            # `bert4keras.models` is an attribute only once it was imported; keras's parts are made when asked for.
            if whole == "keras" and name.islower():
                return find_module(f"keras.{name}")
        return found

    def _module(self, line: int, name: str) -> Any:
        try:
            return find_module(name)
        except Unsupported as error:
            self._add(line, str(error), False)
            return None

    def _add(self, line: int, text: str, carried: bool = True) -> None:
        self.findings.append(Finding(line, text, carried))
