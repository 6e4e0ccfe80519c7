"""The script that measures fine-tuning on a GPU runs without one at tiny sizes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_case_is_measured_and_its_rates_agree(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_finetune", ROOT / "benchmarks" / "gpu_finetune.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    cases = [case for case in script.CASES if not case["compiled"]]
    monkeypatch.setattr(script, "CASES", cases)
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_finetune.py", "--device", "cpu", "--tiny", "--out", str(out)])
    script.main()
    found = json.loads(out.read_text("utf-8"))
    assert [(each["dtype"], each["rows"]) for each in found] == [(each["dtype"], each["rows"]) for each in cases]
    for each in found:
        assert each["tokens_per_second"] == pytest.approx(each["rows"] * 32 / each["seconds_per_step"])
        # 2 blocks of hidden_size 64: 12 matrices' worth of 64 x 64 and 13 x 64 biases and norms each, and the tables.
        assert each["parameters"] == 2 * (12 * 64 * 64 + 13 * 64) + (100 + 32 + 2) * 64
        assert each["share_of_peak"] == pytest.approx(6 * each["parameters"] * each["tokens_per_second"] / script.PEAK)
        assert len(each["losses"]) == 2
