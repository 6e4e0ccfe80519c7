"""The examples about similarity, reading and few labels run as they are, on tiny data of a rule."""

import ast
import contextlib
import io
import json
import runpy
from pathlib import Path

import pytest
from toy_pairs import question_rows, similar_rows
from toy_tasks import model_folder, sky_rows

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


@pytest.mark.slow
def test_similar_sentences(work):
    for part, seed, count in (("train", 0, 400), ("valid", 1, 60), ("test", 2, 60)):
        rows = similar_rows(count, seed=seed)
        text = "\n".join(f"{row['a']}\t{row['b']}\t{int(row['score'])}" for row in rows)
        (work / f"lcqmc.{part}.data").write_text(text, "utf-8")
    query = similar_rows(60, seed=2)[0]["a"]
    found = run("sentence_similarity", "--data", ".", "--query", query, "--epochs", "4", "--lr", "2e-3")
    assert ast.literal_eval(found[0])["spearman"] > 0.3
    assert len(found) == 6 and found[1] == f"1.0000 {query}"


@pytest.mark.parametrize("way", [*(pytest.param(way, marks=pytest.mark.slow) for way in ("mlm", "seq2seq")), "span"])
def test_reading_comprehension(work, way):
    for name, seed, count in (("WebQA", 0, 320), ("SogouQA", 1, 90)):
        data = []
        for row in question_rows(count, seed=seed):
            answer = row["answers"][0]["text"] if row["answers"] else ""
            passages = [{"passage": row["text"], "answer": answer}, {"passage": "云腾致雨", "answer": ""}]
            data.append({"id": str(len(data)), "question": row["question"], "passages": passages})
        (work / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    options = ("--data", ".", "--by", way, "--max-answer", "3", "--epochs", "3", "--lr", "2e-3")
    found = run("reading_comprehension", *options)
    assert ast.literal_eval(found[0])["f1"] > 0.2
    assert len(found) == 31 and all(len(line.split("\t")) == 2 for line in found[1:])


def test_few_labels(work):
    for name, seed, count in (("train", 0, 400), ("dev", 1, 60)):
        lines = [json.dumps(row, ensure_ascii=False) for row in sky_rows(count, seed=seed)]
        (work / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    files = ("--train", "train.jsonl", "--dev", "dev.jsonl", "--epochs", "6", "--lr", "2e-3")
    before, after = run("few_labels", *files, "--template", "{label}：{text}", "--words", "sky=天", "earth=地")
    assert before.startswith("before 0.") and float(after.split()[1]) > max(0.6, float(before.split()[1]))
