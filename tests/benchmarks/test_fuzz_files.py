"""A share of benchmarks/fuzz_files.py: damaged files of every kind give HanmoErrors, in bounded time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, runpy, sys
found = runpy.run_path(sys.argv[1])["fuzz"](int(sys.argv[2]), 7)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
def test_damaged_files_give_errors_of_ours_and_nothing_else():
    words = [sys.executable, "-c", PROGRAM, str(ROOT / "benchmarks" / "fuzz_files.py"), "700"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["faults"] == {} and found["kinds"] == 14
    assert found["counts"]["read"] > 30 and sum(found["counts"].values()) == 700
