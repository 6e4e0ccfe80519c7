"""What `make demo` runs: in a process of its own, as a person does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_writes_teaches_saves_recognises_loads_and_writes_its_poems(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "demo.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    out = result.stdout
    for kind, prompt in (("a poem", "【诗】"), ("a tale", "话说"), ("a modern line", "今天天气不错")):
        assert len(out.partition(f"  {kind}: {prompt}")[2].partition("\n\n")[0]) >= 30
    assert "gpt2_ml: 112,768 parameters, float32" in out
    assert "model.ckpt.data-00000-of-00001" in out
    for poem in (
        "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
        "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    ):
        assert f"  {poem}\n" in out


def test_make_demo_runs_that_file():
    assert "examples/demo.py" in (ROOT / "Makefile").read_text("utf-8")
