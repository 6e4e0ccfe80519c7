"""The examples of examples/tasks run as they are, on tiny data of a rule."""

import ast
import contextlib
import io
import runpy
from pathlib import Path

import pytest
from toy_tasks import entity_rows, model_folder, word_rows

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tasks"


def run(name: str, *words: str) -> str:
    """Run the main function of an example, and return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(FOLDER / f"{name}.py"))["main"](["--model", "model", "--batch", "8", *words])
    return printed.getvalue()


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "model")
    return tmp_path


def columns(row: dict) -> str:
    tags = ["O"] * len(row["text"])
    for span in row["spans"]:
        tags[span["start"] : span["stop"]] = [f"I-{span['label']}"] * (span["stop"] - span["start"])
        tags[span["start"]] = f"B-{span['label']}"
    return "\n".join(f"{character} {tag}" for character, tag in zip(row["text"], tags, strict=True))


def test_entities_by_a_crf(work):
    for seed, (part, count) in enumerate({"train": 200, "dev": 40, "test": 40}.items()):
        blocks = map(columns, entity_rows(count, seed=seed))
        (work / f"example.{part}").write_text("\n\n".join(blocks) + "\n", "utf-8")
    options = ("--data", ".", "--epochs", "5", "--lr", "1e-3", "--text", "玄天地云")
    printed = run("sequence_labeling_ner_crf", *options).splitlines()
    assert ast.literal_eval(printed[0])["f1"] > 0.8
    assert printed[1:] == ["1:3 SKY 天地"]


def test_words_by_a_crf(work):
    (work / "words.txt").write_text("\n".join("  ".join(row["words"]) for row in word_rows(220)), "utf-8")
    options = ("--data", "words.txt", "--epochs", "4", "--lr", "5e-3", "--text", "玄宇宙黄日月辰天")
    printed = run("sequence_labeling_cws_crf", *options).splitlines()
    assert ast.literal_eval(printed[0])["f1"] > 0.8
    assert printed[1:] == ["玄 宇宙 黄 日月辰 天"]
