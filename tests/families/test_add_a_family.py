"""CONTRIBUTING.md's "Add a family", followed step by step in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The network of the example in plain torch, in its own names, without any code of Hanmo.
PLAIN = """
import json

import numpy as np
import torch
from torch.nn import functional as F

import hanmo
from hanmo.checkpoint.save import save
from hanmo.families import FAMILIES
from hanmo.model import Model

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)


def plain(weights, ids):
    def dense(name, x):
        return F.linear(x, weights[f"plum.{name}.weight"], weights[f"plum.{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"plum.{name}.weight"], weights[f"plum.{name}.bias"], 1e-6)

    x = weights["plum.words.weight"][ids] + weights["plum.places.weight"][: ids.shape[1]]
    for i in range(3):
        h = norm(f"layers.{i}.norm_1", x)
        inputs = [dense(f"layers.{i}.mix.{name}", h) for name in ("query", "key", "value")]
        q, k, v = (each.unflatten(-1, (4, 8)).transpose(1, 2) for each in inputs)
        mixed = ((q @ k.mT) / 8**0.5).softmax(-1) @ v
        x = x + dense(f"layers.{i}.mix.out", mixed.transpose(1, 2).flatten(2))
        h = dense(f"layers.{i}.mlp.up", norm(f"layers.{i}.norm_2", x))
        x = x + dense(f"layers.{i}.mlp.down", F.relu(h) ** 2)
    return norm("norm", x)


def test_a_checkpoint_of_others_loads_computes_and_saves_again(tmp_path):
    torch.manual_seed(0)
    names = FAMILIES["plum"].huggingface
    config = names.config(SIZES | {"max_position_embeddings": 20})
    shapes = {name: parameter.shape for name, parameter in Model(config).named_parameters()}
    theirs = {row.theirs: torch.randn(shapes[row.ours[0]]) * 0.3 for row in names.rows(config)}
    assert len(theirs) == len(shapes)
    from safetensors.torch import load_file, save_file

    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"max_position_embeddings": 20, "model_type": "plum"}))
    assert hanmo.inspect(tmp_path).found.family == "plum"
    loaded = hanmo.load(tmp_path)
    assert loaded.report.used == len(theirs) and loaded.config.main.activation == "squared_relu"
    ids = torch.randint(50, (2, 7))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).hidden, plain(theirs, ids), rtol=0, atol=1e-4)
    save(loaded.model, tmp_path / "again", form="huggingface")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == theirs.keys() and all(torch.equal(again[name], theirs[name]) for name in theirs)
"""


def insert_before(path: Path, marker: str, line: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(marker) == 1
    path.write_text(text.replace(marker, line + marker), "utf-8")


@pytest.mark.slow
def test_the_steps_are_one_file_one_line_of_the_table_and_one_of_the_tests(tmp_path):
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = page[page.index("## Add a family") : page.index("## Measure")]
    blocks = re.findall(r"^   ```\w+\n(.*?)^   ```$", section, re.DOTALL | re.MULTILINE)
    shown = [re.sub(r"(?m)^ {3}", "", block) for block in blocks]  # blocks stand in a numbered list
    family, imported, listed, tested = shown
    assert [block.count("\n") for block in (imported, listed, tested)] == [1, 1, 1]

    shutil.copytree(ROOT / "hanmo", tmp_path / "hanmo", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    shutil.copytree(ROOT / "tests" / "families", tmp_path / "tests" / "families")
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "hanmo" / "families" / "plum.py").write_text(family, "utf-8")
    table = tmp_path / "hanmo" / "families" / "__init__.py"
    insert_before(table, "from hanmo.families.roberta import", imported)
    insert_before(table, "    )\n}\n", listed)
    insert_before(tmp_path / "tests" / "families" / "test_families.py", '    ("bert", "tensorflow"): BERT,\n', tested)
    (tmp_path / "tests" / "families" / "test_plum.py").write_text(PLAIN, "utf-8")

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "tests/families"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    assert int(re.findall(r"(\d+) passed", result.stdout)[0]) > 200
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        found = subprocess.run([sys.executable, "-m", *tool, str(tmp_path / "hanmo" / "families")], text=True)
        assert found.returncode == 0
