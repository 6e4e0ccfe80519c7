"""Layers, losses and decoders of tasks equal the arrays that bert4keras computed, in float64 and in float32."""

import importlib.util
import shutil
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


def test_every_check_has_its_file():
    assert sorted(GOLDENS.CHECKS) == FILES


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


def test_the_last_line_counts_the_arrays_and_a_missing_file_is_a_miss(tmp_path, monkeypatch, capsys):
    shutil.copy(FOLDER / "multilabel.npz", tmp_path)
    with np.load(FOLDER / "multilabel.npz") as file:
        total = len(file.files)
    assert GOLDENS.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{total} of {total + len(FILES) - 1} arrays"
    assert f"{tmp_path / 'crf'}.npz is missing; it counts as one array" in lines
    monkeypatch.setattr(GOLDENS, "CHECKS", {"multilabel": GOLDENS.CHECKS["multilabel"]})
    assert GOLDENS.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{total} of {total} arrays"
