"""`make demo` runs without a warning and shows each step's result."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_shows_a_checkpoint_written_recognised_loaded_and_run(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "demo.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    out = result.stdout
    assert re.search(r"model\.ckpt\.data-00000-of-00001 +[\d,]+ bytes", out)
    assert "gpt2_ml: 1,229,856 parameters in 68 tensors, float32" in out
    assert "does not fit: nothing" in out
    assert "68 tensors used, 0 left out" in out
    assert "logits [2, 6, 8021]" in out
    difference = re.search(r"differs by at most (\S+)", out)
    assert float(difference[1]) < 1e-5
    assert list(tmp_path.iterdir()) == []


def test_make_demo_runs_that_file():
    assert "examples/demo.py" in (ROOT / "Makefile").read_text("utf-8")
