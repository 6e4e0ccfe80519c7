"""The measurements of training run through at tiny sizes, and say what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_our_side_of_training_beside_transformers_counts_tokens_and_memory():
    done = run("benchmarks/train_peer.py", "--tiny", "--side", "hanmo", "--steps", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens_per_second"] > 0 and found["peak_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--base", str(ROOT), "--precisions", "mixed")])
def test_precisions_and_versions_take_turns_at_training(options):
    done = run("benchmarks/train_versions.py", "--shape", "tiny", "--rounds", "2", "--steps", "1", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s (median step)") == (2 if options else 3)
