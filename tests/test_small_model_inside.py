"""The small model that ships with the package: whole, small enough, described, and the one that writes by default."""

import hashlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hanmo
from hanmo.cli.app import app
from hanmo.generate.dynamic import is_dynamic
from hanmo.inference.fused.support import kernels
from hanmo.pipeline import SMALL

ROOT = Path(hanmo.__file__).parent


def test_its_files_are_those_that_their_sums_tell():
    told = dict(reversed(line.split("  ")) for line in (SMALL / "SHA256SUMS").read_text("utf-8").splitlines())
    assert set(told) == {path.name for path in SMALL.iterdir()} - {"SHA256SUMS"}
    assert {"model.safetensors", "hanmo.json", "vocab.txt", "training.json", "MODEL_CARD.md"} <= set(told)
    for name, digest in told.items():
        assert hashlib.sha256((SMALL / name).read_bytes()).hexdigest() == digest, name


def test_it_is_small_and_the_wheel_has_all_of_it():
    assert (SMALL / "model.safetensors").stat().st_size <= 24_000_000
    project = (ROOT.parent / "pyproject.toml").read_text("utf-8")
    (line,) = re.findall(r"^hanmo = \[(.*)\]$", project, re.MULTILINE)
    patterns = re.findall(r'"([^"]+)"', line)
    for path in SMALL.iterdir():
        assert any(fnmatch(str(path.relative_to(ROOT)), pattern) for pattern in patterns), path


def test_its_card_tells_sources_licences_figures_and_limits():
    card = (SMALL / "MODEL_CARD.md").read_text("utf-8")
    for word in ("NiuTrans", "chinese-poetry", "CC BY 4.0, Microsoft", "5-gram", "int4", "30 characters", "curves.png"):
        assert word in card, word
    for prompt in ("今天天气不错", "双十一", "科学空间", "床前明月光", "话说"):
        assert card.count(f"> {prompt}") >= 2


def test_it_writes_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["write", "春眠不觉晓", "--seed", "1", "--max-chars", "40", "--min-chars", "10"]
    first, second = (CliRunner().invoke(app, command) for _ in range(2))
    assert first.exit_code == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stdout.startswith("春眠不觉晓") and len(first.stdout) >= 15


def test_it_predicts_chinese_far_better_than_chance():
    model = hanmo.load()
    text = "话说那人听了，心中大喜，便道：“既然如此，我们明日就去。”"
    assert model.score(text).bits_per_char < 9  # 8,000 tokens, all alike, would cost 13
    assert model.score(text).bits_per_char < model.score(text[::-1]).bits_per_char


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_cpu_engine_takes_it_and_steps_its_rows_together(tmp_path, monkeypatch, weights):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    writer = hanmo.open_writer(weights=weights)
    assert writer.write("话说", seed=0, max_chars=20, stop=None)[0].startswith("话说")
    assert is_dynamic(writer.engine) == (kernels("quantized") is not None)
