"""The script that measures decoding on a GPU runs without one at tiny sizes, and says so where it cannot."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gpu_decode_under_test", ROOT / "benchmarks" / "gpu_decode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_measures_every_side_at_every_number_of_rows(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_decode.py", "--device", "cpu", "--tiny", "--out", str(tmp_path / "o.json")])
    script.main()
    found = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert found == json.loads(capsys.readouterr().out)
    expected = {(side, rows) for side in ("bfloat16", "int8", "transformers") for rows in (1, 2)}
    assert {(case["side"], case["rows"]) for case in found["cases"]} == expected
    for case in found["cases"]:
        assert case["tokens_per_second"] == pytest.approx(case["rows"] / case["ms_per_step"] * 1e3)
        assert ("share_of_bandwidth" in case) == (case["side"] != "transformers")
        assert ("ms_per_step_without_choosing" in case) == (case["side"] != "transformers")
        assert case["times_faster_than_peer"] > 0
    assert [(case["side"], case["rows"]) for case in found["requests"]] == sorted(expected)[:4]
    assert all(value > 0 for case in found["requests"] for key, value in case.items() if key != "side")
    # 2 blocks of hidden_size 64 and a vocabulary of 100: 12 matrices' worth of 64 x 64 each, biases, and the output.
    assert found["weight_bytes_read"]["bfloat16"] == 2 * (2 * (12 * 64 * 64 + 9 * 64) + 100 * 64)
    assert found["weight_bytes_read"]["int8"] == 2 * (12 * 64 * 64 + (4 + 2) * 9 * 64) + 2 * 100 * 64
    assert found["device"] == "cpu, figures mean nothing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_decode.py"])
    with pytest.raises(SystemExit):
        script.main()
    assert "gpu_decode.py needs a CUDA GPU, and torch finds none here" in capsys.readouterr().err
