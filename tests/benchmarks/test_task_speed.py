"""The benchmark of tasks runs at tiny sizes, and finds logits in float32 equal to torch's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*options: str) -> str:
    command = [sys.executable, "benchmarks/task_speed.py", "--tiny", "--threads", "1", "--texts", "24", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rates(table: str) -> dict[str, float]:
    return {side: float(rate.replace(",", "")) for side, rate in re.findall(r"^\| (\w+) \| ([\d,.]+) ", table, re.M)}


@pytest.mark.slow
def test_predicting_is_measured_for_every_side():
    table = run("--part", "predict", "--rounds", "2")
    assert list(rates(table)) == ["transformers", "float32", "bfloat16", "int8"]
    assert all(rate > 0 for rate in rates(table).values())
    off = {side: float(value) for side, value in re.findall(r"^\| (\w+) .* ([\d.]+e[-+]\d+) \|$", table, re.M)}
    assert 0 < off["float32"] < 1e-4 < off["int8"]


@pytest.mark.slow
def test_training_is_measured_for_both_sides():
    pytest.importorskip("accelerate")
    found = rates(run("--part", "train", "--rounds", "1", "--steps", "2"))
    assert list(found) == ["transformers", "torch"]
    assert all(rate > 0 for rate in found.values())
