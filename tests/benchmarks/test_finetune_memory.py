"""The measurement of fine-tuning runs, at a size where it shows nothing but that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tiny_checkpoint_is_written_trained_and_measured(tmp_path, precision):
    command = [sys.executable, ROOT / "benchmarks" / "finetune_memory.py", tmp_path, "--tiny", "--precision", precision]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    text, line = out.rsplit("}", 1)
    told = json.loads(text + "}")
    assert len(told["losses"]) == len(told["seconds"]) == 3
    assert told["parameters"] == 136_192
    assert told["measured_bytes"] > 0
    assert 136_192 * 2 < told["planned_bytes"] < 2**22
    assert "planned 0.00 GiB" in line
