"""The models that ship with the package: complete, small enough, described; one writes by default, one fills masks."""

import hashlib
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hanmo
from hanmo.checkpoint.open import INCLUDED
from hanmo.cli.app import app
from hanmo.pipeline import SMALL

ROOT = Path(hanmo.__file__).parent


@pytest.mark.parametrize("folder", INCLUDED.values(), ids=INCLUDED)
def test_its_files_are_those_of_its_checksums(folder):
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text("utf-8").splitlines())
    assert set(sums) == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert {"model.safetensors", "hanmo.json", "vocab.txt", "MODEL_CARD.md"} <= set(sums)
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize(("name", "most"), [("small", 24_000_000), ("encoder", 6_000_000)])
def test_it_is_small_and_the_wheel_has_all_of_it(name, most):
    assert (INCLUDED[name] / "model.safetensors").stat().st_size <= most
    project = (ROOT.parent / "pyproject.toml").read_text("utf-8")
    (line,) = re.findall(r"^hanmo = \[(.*)\]$", project, re.MULTILINE)
    patterns = re.findall(r'"([^"]+)"', line)
    for path in INCLUDED[name].iterdir():
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
def test_the_cpu_engine_takes_it(tmp_path, monkeypatch, weights):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hanmo.open_writer(weights=weights).write("话说", seed=0, max_chars=20, stop=None)[0].startswith("话说")


def test_the_encoder_fills_masks_and_its_name_gives_way_to_a_path(tmp_path, monkeypatch):
    assert hanmo.load("encoder").fill("林黛[MASK]听了，不觉落下泪来。")[0][0].token == "玉"
    monkeypatch.chdir(tmp_path)
    hanmo.save(hanmo.load().model, tmp_path / "encoder")
    assert hanmo.load("encoder").config.family == "gpt2_ml"


def test_the_encoder_learns_a_task(tmp_path):
    rows = [{"text": text, "label": label} for text, label in (("很好", "好"), ("很坏", "坏"))] * 2
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    command = ["task", "fit", "--model", "encoder", "--kind", "classify", "--train", data, "--dev", data]
    done = CliRunner().invoke(app, [*map(str, command), "--epochs", "1", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    assert hanmo.load(tmp_path / "run").predict(["很好"])[0]["label"] in ("好", "坏")
