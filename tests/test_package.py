"""The package promises a few names, and importing it costs next to nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hanmo

ROOT = Path(__file__).resolve().parent.parent


def test_the_version_is_that_of_the_distribution_and_of_the_changelog():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert re.findall(r'^version = "(.*)"$', project, re.MULTILINE) == [hanmo.__version__]
    assert re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[0] == hanmo.__version__


def test_importing_it_imports_neither_torch_nor_numpy():
    program = "import sys, hanmo, hanmo.cli; print(sorted({'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_every_public_name_is_there_when_it_is_used():
    assert hanmo.__all__ == ["__version__", "errors", "inspect", "load", "open_writer", "save"]
    for name in hanmo.__all__:
        assert getattr(hanmo, name) is not None
        assert name in dir(hanmo)
    assert issubclass(hanmo.errors.ConfigError, ValueError)
    assert hanmo.load.__module__ == "hanmo.loading"


def test_an_unknown_name_is_named_with_those_there_are():
    name = "lode"
    with pytest.raises(AttributeError, match=r"has no attribute .lode.; it has .*inspect, load, open_writer, save"):
        getattr(hanmo, name)


def test_training_is_still_found_under_its_old_name():
    from hanmo.train import fit

    assert hanmo.train.fit is hanmo.training.fit is fit


def test_what_every_module_imports_is_a_runtime_dependency():
    root = Path(hanmo.__file__).parent
    declared = re.search(
        r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert declared is not None
    known = {name.replace("-", "_") for name in re.findall(r'^ *"([\w-]+)', declared[1], re.MULTILINE)}
    # triton and llvmlite come with torch and numba; compat/bert4keras/graph is imported for scripts that need Keras
    optional = {"triton", "ray", "llvmlite", "keras"}
    optional |= {
        "starlette",
        "uvicorn",
        "pydantic",
        "prometheus_client",
        "jinja2",
    }  # hanmo[serve], by hanmo.server alone
    found = {}
    for path in set(root.rglob("*.py")) - set((root / "assets").rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {(name or "").split(".")[0]: path.name for name in names}
    assert len(found) > 20
    assert {name for name in found if name not in {*sys.stdlib_module_names, "hanmo"}} <= known | optional, found
