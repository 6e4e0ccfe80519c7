import json
from pathlib import Path

from opening import open_engine
from typer.testing import CliRunner

from hanmo.cli.app import app

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"


def run(*words):
    result = CliRunner().invoke(app, ["cache", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_what_is_kept_is_listed_with_its_model_and_cleared(tmp_path):
    checkpoint = GOLDENS / "gpt2_ml" / "model.ckpt"
    for weights in ("float32", "int8"):
        open_engine(checkpoint, weights=weights, folder=tmp_path)
    (tmp_path / ".a.safetensors.12.partial").write_bytes(b"123")
    (tmp_path / "b.safetensors").write_bytes(b"not a file of weights")
    out, err = run("--cache-dir", tmp_path)
    lines = out.splitlines()
    assert len(lines) == 4 and "holds 4 files" in err
    assert sum(str(checkpoint) in line for line in lines) == 2
    assert sum("unfinished" in line for line in lines) == 1 and sum("int8" in line for line in lines) == 1
    found = json.loads(run("--cache-dir", tmp_path, "--json")[0])
    assert sorted(each.get("weights", "") for each in found) == ["", "", "float32", "int8"]
    assert sum(each["finished"] for each in found) == 3
    out, err = run("--cache-dir", tmp_path, "--clear")
    total = sum(each["bytes"] for each in found)
    assert out == "" and f"deleted 4 files of {total:,} bytes" in err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_cache_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    out, err = run()
    assert out == "" and f"{tmp_path / 'hanmo'} holds 0 files of 0 bytes" in err
    assert run("--json")[0].strip() == "[]"
