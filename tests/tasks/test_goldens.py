"""Layers, losses and decoders of tasks equal the arrays that bert4keras computed, in float64 and in float32."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "data" / "goldens" / "tasks"


def load_benchmark():
    path = ROOT / "benchmarks" / "task_goldens.py"
    spec = importlib.util.spec_from_file_location("task_goldens", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["task_goldens"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


GOLDENS = load_benchmark()
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@pytest.mark.parametrize("name", FILES)
def test_every_array_of_the_original_is_matched(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        total = len(file.files)
    report = GOLDENS.run(FOLDER / f"{name}.npz")
    assert report.missed == []
    assert report.matched == report.total == total > 0


def test_an_array_that_differs_or_is_not_used_is_missed(tmp_path):
    with np.load(FOLDER / "viterbi.npz") as file:
        arrays = {name: file[name] for name in file.files if name.startswith("ties/")}
    wrong = {"ties/paths": arrays["ties/paths"] + 1, "ties/unknown": np.zeros(3)}
    np.savez(tmp_path / "viterbi.npz", **arrays | wrong)
    report = GOLDENS.run(tmp_path / "viterbi.npz")
    assert (report.matched, report.total) == (len(arrays) - 1, len(arrays) + 1)
    assert {line.split(": ")[0] for line in report.missed} == {"viterbi ties/paths", "viterbi ties/unknown"}
