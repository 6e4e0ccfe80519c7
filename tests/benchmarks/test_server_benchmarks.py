"""The benchmarks of the server run at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 2002,
}


@pytest.mark.slow
def test_no_token_is_lost_and_no_row_is_left_behind_under_a_little_load():
    options = ["--streams", "4", "--seconds", "4", "--tokens", "8", "--leaving", "20"]
    command = [sys.executable, str(ROOT / "server_load.py"), *options]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    assert found["streams"] >= 4 and found["tokens"] > 30
    assert (found["lost"], found["doubled"], found["refused"], found["rows left behind"]) == (0, 0, 0, 0)
    assert found["clients that left"] == 20


@pytest.mark.slow
def test_the_clients_are_compared_with_static_batches(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import load_large
    from peers.bench import find_checkpoint

    monkeypatch.setattr(load_large, "MEGA", {**load_large.MEGA, **TINY})
    find_checkpoint(None, tmp_path)
    options = [
        "--envs",
        str(tmp_path),
        "--peers",
        "--rounds",
        "1",
        "--requests",
        "1",
        "--shrink",
        "8",
        "--threads",
        "1",
    ]
    command = [sys.executable, str(ROOT / "server_peers.py"), *options]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert "### Against static batches of 8" in shown and "First token of a ninth client" in shown
