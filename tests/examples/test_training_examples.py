"""The examples of fine-tuning run as they stand, and what docs/training.md shows is what happens."""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import hanmo
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text("utf-8")


@pytest.fixture
def work(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        shutil.copyfile(data / "goldens" / "gpt2_ml_original" / name, tmp_path / "model" / name)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + number) for number in range(113))]
    (tmp_path / "model" / "vocab.txt").write_text("".join(token + "\n" for token in tokens), "utf-8")
    text = "".join(chr(0x4E00 + number * number % 113) for number in range(400))
    (tmp_path / "novel.txt").write_text(text, "utf-8")
    return tmp_path


def run(monkeypatch, name: str, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *words])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return printed.getvalue()


def test_fine_tuning_gpt2_ml_on_ones_own_text(work, monkeypatch):
    words = ("model", "novel.txt", "tuned", "--sequence", "40", "--lr", "5e-3", "--prompt", "一丁")
    printed = run(monkeypatch, "finetune_gpt2_ml.py", *words, "--steps", "30")
    assert printed.startswith("一丁") and len(printed) > 10
    found = [json.loads(line) for line in Path("tuned/log.jsonl").read_text("utf-8").splitlines()]
    scores = [record["evaluation"]["bits_per_character"] for record in found if "evaluation" in record]
    assert len(scores) == 11 and scores[-1] < 0.8 * scores[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [("unilm_titles.py", "bert"), ("t5_titles.py", "t5_1.0")])
def test_titles_are_learned_and_written(data, tmp_path, monkeypatch, name, model):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "goldens" / model, "model", ignore=shutil.ignore_patterns("cases.*"))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + number) for number in range(115))]
    Path("model/vocab.txt").write_text("".join(token + "\n" for token in tokens), "utf-8")
    texts = ["".join(chr(0x4E00 + (start * 7 + n) % 20) for n in range(6)) for start in range(40)]
    lines = [json.dumps({"source": text, "target": text[0] * 2}, ensure_ascii=False) for text in texts]
    Path("pairs.jsonl").write_text("\n".join(lines), "utf-8")
    options = ("--model", "model", "--data", "pairs.jsonl", "--out", "out", "--steps", "300", "--rows", "16")
    printed = run(monkeypatch, name, *options, "--lr", "3e-3", "--title-limit", "4", "--text", texts[3]).splitlines()
    assert printed[0] == "40 pairs, of which 0 were cut" and len(printed) == 2
    losses = [json.loads(line)["loss"] for line in Path("out/log.jsonl").read_text("utf-8").splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    assert len(printed[1]) <= 4 and set(printed[1]) <= set("".join(texts))


def test_continuing_the_pretraining_takes_the_moments_along(work, monkeypatch):
    with open_source("model") as source:
        items = [(name, source.read(name)) for name in source.tensors]
    for name, value in list(items):
        kinds = {"vr": value.shape[:1], "vc": value.shape[1:]} if value.ndim == 2 else {"v": value.shape}
        items += [(f"{name}/adafactor_{kind}", np.full(shape, 1e-4, np.float32)) for kind, shape in kinds.items()]
    write_bundle(Path("model/model.ckpt"), items)
    run(
        monkeypatch, "continue_pretraining.py", "model", "novel.txt", "more", "--steps", "6", "--sequence", "40",
        "--batch", "2",
    )  # fmt: skip
    assert hanmo.load("more/best").tokenizer is not None


def test_the_python_block_prints_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "training.md", "exec"), {})
    assert printed.getvalue() == shown


def test_every_option_that_is_shown_exists():
    import typer

    commands = typer.main.get_command(app).commands
    known = {name for command in ("finetune", "pretrain", "write") for p in commands[command].params for name in p.opts}
    shown = set(re.findall(r"(--[a-z][a-z-]+)", PAGE)) - {"--nproc-per-node"}
    assert len(shown) > 12 and shown <= known
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert [shlex.split(line)[:2] for line in lines] == [["hanmo", "finetune"], ["hanmo", "write"]]
