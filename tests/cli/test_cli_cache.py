import json
import logging
from pathlib import Path

import pytest
from opening import open_engine
from typer.testing import CliRunner

from hanmo.cli.app import app
from hanmo.inference.fused import support
from hanmo.kernels import cache
from hanmo.training.optim import adafactor_on_cpu

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
    monkeypatch.setattr(cache, "places", lambda: [tmp_path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    out, err = run()
    assert out == "" and f"{tmp_path / 'hanmo'} holds 0 files of 0 bytes" in err
    assert run("--json")[0].strip() == "[]"


def test_compiled_kernels_are_listed_and_cleared(tmp_path):
    made = tmp_path / "compiled" / "0123"
    made.mkdir(parents=True)
    about = {"kernel": "quantized", "processor": "haswell (avx2)", "seconds": 6.1, "files": {}}
    (made / "about.json").write_text(json.dumps(about))
    size = (made / "about.json").stat().st_size
    out, _ = run("--cache-dir", tmp_path)
    assert f"{size:,}  compiled    quantized for haswell (avx2)  {made}" in out
    (row,) = json.loads(run("--cache-dir", tmp_path, "--json")[0])
    assert row == {"path": str(made), "bytes": size, "kernel": "quantized", "processor": "haswell (avx2)"}
    assert f"deleted compiled kernels of {size:,} bytes" in run("--cache-dir", tmp_path, "--clear")[1]
    assert not made.exists()


@pytest.mark.parametrize("there", [True, False])
def test_the_kernels_are_compiled_ahead(tmp_path, monkeypatch, there):
    def load(name="adafactor"):
        logging.getLogger("hanmo.kernels").info("compiling kernels for this processor (10 to 30 s, once)")
        return support if there else None

    monkeypatch.setattr(support, "kernels", load)
    monkeypatch.setattr(adafactor_on_cpu, "loops", load)
    monkeypatch.setattr(support, "processor", lambda: "haswell (avx2)")
    _, err = run("--warm")
    assert err.count("hanmo: compiling kernels for this processor (10 to 30 s, once)\n") == 3
    made = "compiled for haswell (avx2): float32, quantized, adafactor"
    assert (made if there else "this machine has no fused steps") in err


def test_compiling_ahead_is_for_all_commands(tmp_path):
    result = CliRunner().invoke(app, ["cache", "--warm", "--cache-dir", str(tmp_path)])
    words = result.output.replace("│", "").split()
    assert result.exit_code == 2 and "give it without --clear and --cache-dir" in " ".join(words)
