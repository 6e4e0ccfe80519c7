"""The examples about similarity, reading and few labels run as they are, on tiny data of a rule."""

import ast
import contextlib
import io
import runpy
from pathlib import Path

import pytest
from toy_pairs import similar_rows
from toy_tasks import model_folder

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tasks"


def run(name: str, *words: str) -> list[str]:
    """Run the main function of an example, and return the lines that it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(FOLDER / f"{name}.py"))["main"](["--model", "model", "--batch", "16", *words])
    return printed.getvalue().splitlines()


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "model")
    return tmp_path


def test_similar_sentences(work):
    for part, seed, count in (("train", 0, 400), ("valid", 1, 60), ("test", 2, 60)):
        rows = similar_rows(count, seed=seed)
        text = "\n".join(f"{row['a']}\t{row['b']}\t{int(row['score'])}" for row in rows)
        (work / f"lcqmc.{part}.data").write_text(text, "utf-8")
    query = similar_rows(60, seed=2)[0]["a"]
    found = run("sentence_similarity", "--data", ".", "--query", query, "--epochs", "4", "--lr", "2e-3")
    assert ast.literal_eval(found[0])["spearman"] > 0.3
    assert len(found) == 6 and found[1] == f"1.0000 {query}"
