"""Imports run one way and in no circle; files and functions stay small; retired names do not come back."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import hanmo

ROOT = Path(hanmo.__file__).parent

# Each layer may import those above it in this list, and itself; layers on one line know nothing of each other.
STREET = [
    ["errors"],
    ["cores", "files"],
    ["config"],
    ["families"],
    ["nn"],
    ["model"],
    ["checkpoint"],
    ["kernels"],
    ["tokenizers"],
    ["generate", "training", "train", "inference"],
    ["export"],
    ["pipeline"],
    ["batch"],
    ["model_pipeline"],
    ["loading"],
    ["opening"],
    ["bench", "finetune", "tasks"],
    ["compat", "server"],
    ["cli"],
    ["__main__"],
]
RANK = {layer: rank for rank, layers in enumerate(STREET) for layer in layers}

MAX_FILE, MAX_FUNCTION = 350, 60
# What is longer, and why it reads better in one piece.
LONG: dict[str, str] = {
    "inference/fused/quantized_kernel.py:step": "one layer of some tokens, from one barrier of the threads to the next",
}

# Private words that standard terms replaced; CHANGELOG.md has the table of old and new names.
RETIRED = re.compile(r"foretel|foretold|sights?\b|crew|wishes|blocks_alone|misfit|give_back", re.IGNORECASE)

MODULES = sorted(set(ROOT.rglob("*.py")) - set((ROOT / "assets").rglob("*.py")))  # assets: code for transformers


def name_of(path: Path) -> str:
    parts = ("hanmo", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """List (line, dotted name) of every import anywhere in a file, those of types and inside functions included."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            found += ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
    return found


def layer(name: str) -> str:
    """Tell the layer of a dotted name inside the package; "" for the package itself."""
    return [*name.split("."), ""][1]


def backward(path: Path) -> list[str]:
    own = layer(name_of(path))
    wrong = []
    for line, name in imports(path):
        if name.split(".")[0] != "hanmo" or own == "" or name == "hanmo.__version__":
            continue
        other = layer(name)
        if other not in RANK or RANK[other] > RANK[own] or (RANK[other] == RANK[own] and other != own):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: {own} may not know {other or 'the whole'}")
    return wrong


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 40
    assert sum(1 for path in MODULES for _ in imports(path)) > 200


def test_every_part_of_the_package_has_its_place():
    parts = {layer(name_of(path)) for path in MODULES} - {""}
    assert parts <= set(RANK), f"say in STREET where {sorted(parts - set(RANK))} belongs"


def test_no_layer_imports_a_later_one():
    assert [line for path in MODULES for line in backward(path)] == []


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Find the sets of modules that import one another, directly or through others (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
            if other in path:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            start = path.index(module)
            if len(path) - start > 1:
                found.append(set(path[start:]))
            del path[start:]

    for module in graph:
        if module not in number:
            visit(module)
    return found


def imported_modules(paths: dict[str, Path]) -> dict[str, set[str]]:
    """Give the modules that each module imports; a name that is no module stands for the one it is taken from."""
    graph = {}
    for module, path in paths.items():
        names = {name for _, name in imports(path)}
        graph[module] = {name if name in paths else name.rpartition(".")[0] for name in names} & set(paths) - {module}
    return graph


def test_no_modules_import_each_other_in_a_circle():
    found = circles(imported_modules({name_of(path): path for path in MODULES}))
    assert [sorted(circle) for circle in found] == []


def test_a_circle_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "part").mkdir()
    texts = {
        "part/a.py": "from hanmo.part.b import f",
        "part/b.py": "def f():\n    from hanmo.part import c",
        "part/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hanmo.part.a",
        "part/d.py": "import hanmo.part.a",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = circles(imported_modules({name_of(path): path for path in tmp_path.rglob("*.py")}))
    assert found == [{"hanmo.part.a", "hanmo.part.b", "hanmo.part.c"}]


def written() -> list[Path]:
    """List what people wrote: code, documents and settings, apart from the changelog and this file."""
    clone = Path(__file__).resolve().parent.parent
    paths = [path for path in clone.iterdir() if path.is_file()]
    for folder in ("hanmo", "tests", "docs", "examples", "benchmarks"):
        paths += (clone / folder).rglob("*")
    kinds = {".py", ".md", ".toml", ".json", ".ipynb"}
    left_out = {clone / "CHANGELOG.md", clone / "tests" / "data", Path(__file__).resolve()}
    return [path for path in paths if path.suffix in kinds and left_out.isdisjoint((path, *path.parents))]


def test_retired_names_are_found_in_the_changelog_alone():
    paths = written()
    assert len(paths) > 250
    lines = [(path, line) for path in paths for line in path.read_text("utf-8").splitlines()]
    assert [f"{path.name}: {line.strip()}" for path, line in lines if RETIRED.search(line)] == []


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("nn/norm.py", "from hanmo.checkpoint import load"),
        ("generate/loop.py", "def f():\n    import hanmo.training.data.pack"),
        ("training/loop.py", "from hanmo.generate.loop import Limits"),
        ("checkpoint/load.py", "import hanmo"),
        ("model.py", "from hanmo import hub"),
        ("compat/x.py", "from hanmo.cli import main"),
    ],
)
def test_a_backward_import_is_found(tmp_path, monkeypatch, where, text):
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert len(backward(path)) == 1


def test_families_are_data():
    allowed = {"hanmo", "collections", "dataclasses", "functools", "typing"}
    for path in (ROOT / "families").glob("*.py"):
        assert {name.split(".")[0] for _, name in imports(path)} <= allowed, path.name


def test_errors_and_configuration_need_nothing_installed():
    for name in ("errors.py", "files.py", "config.py"):
        assert {found.split(".")[0] for _, found in imports(ROOT / name)} <= {*sys.stdlib_module_names, "hanmo"}


def test_nothing_imports_tensorflow_and_the_graph_of_layers_alone_imports_keras():
    found = {(name.split(".")[0], path.parent.name) for path in MODULES for _, name in imports(path)}
    assert {pair for pair in found if pair[0] in ("tensorflow", "tf_keras", "keras", "bert4keras")} == {
        ("keras", "graph")
    }


def test_nothing_imports_the_graph_of_layers_before_a_script_needs_keras():
    names = [name_of(path) for path in MODULES if layer(name_of(path)) == "compat" and "graph" not in path.parts]
    program = f"import sys\nfor name in {names}:\n    __import__(name)\nassert 'keras' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_torch_is_not_on_the_way_from_the_shell_to_the_text():
    free = [
        name_of(path)
        for path in MODULES
        if layer(name_of(path)) in ("", "errors", "files", "config", "families", "tokenizers", "generate", "cli")
        and path.name != "__main__.py"
    ]
    free += [f"hanmo.checkpoint.{name}" for name in ("inspect", "open", "tf.bundle", "safetensors")]
    program = f"import sys\nfor name in {free}:\n    __import__(name)\n    assert 'torch' not in sys.modules, name"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert len(free) > 20


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (file:function, number of lines) of every function and method."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_files_and_functions_are_short():
    files = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in MODULES}
    long = {name: size for name, size in files.items() if size > MAX_FILE}
    long |= {name: size for path in MODULES for name, size in functions(path) if size > MAX_FUNCTION}
    assert {name: size for name, size in long.items() if name not in LONG} == {}
    assert set(LONG) <= set(long), "an exception that is needed no more"
