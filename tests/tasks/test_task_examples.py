"""The examples of examples/tasks run as they are, on tiny data of a rule."""

import ast
import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import pytest
from toy_tasks import entity_rows, model_folder, pair_rows, sky_rows, word_rows

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "tasks"


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


@pytest.mark.slow
def test_words_by_a_crf(work):
    (work / "words.txt").write_text("\n".join("  ".join(row["words"]) for row in word_rows(220)), "utf-8")
    options = ("--data", "words.txt", "--epochs", "4", "--lr", "5e-3", "--text", "玄宇宙黄日月辰天")
    printed = run("sequence_labeling_cws_crf", *options).splitlines()
    assert ast.literal_eval(printed[0])["f1"] > 0.8
    assert printed[1:] == ["玄 宇宙 黄 日月辰 天"]


def write_table(work: Path, name: str, rows, keys: tuple[str, ...]) -> None:
    for seed, (part, count) in enumerate({"train": 320, "valid": 40, "test": 40}.items()):
        lines = [
            "\t".join((*(row[key] for key in keys), str(int(row["label"] == "sky")))) for row in rows(count, seed=seed)
        ]
        (work / f"{name}.{part}.data").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.slow
def test_sentiment_by_an_albert(work):
    model_folder(work / "albert", family="albert", positions=128)
    write_table(work, "sentiment", sky_rows, ("text",))
    options = ("--model", "albert", "--data", ".", "--epochs", "5", "--lr", "2e-3", "--text", "天地玄黄日")
    printed = run("sentiment_albert", *options).splitlines()
    assert ast.literal_eval(printed[0])["accuracy"] > 0.8
    assert re.fullmatch(r"1 [01]\.\d{3} 天地玄黄日", printed[1])


@pytest.mark.slow
def test_pairs_of_lcqmc(work):
    model_folder(work / "bert", positions=128)
    write_table(work, "lcqmc", pair_rows, ("a", "b"))
    options = ("--model", "bert", "--data", ".", "--epochs", "8", "--lr", "2e-3", "--pair", "天地玄黄", "宇宙洪荒日")
    printed = run("sentence_similarity_lcqmc", *options).splitlines()
    assert ast.literal_eval(printed[0])["accuracy"] > 0.8
    assert re.fullmatch(r"1 [01]\.\d{3} 天地玄黄 宇宙洪荒日", printed[1])


@pytest.mark.slow
def test_classes_of_iflytek(work):
    for seed, (part, count) in enumerate({"train": 320, "dev": 40, "test": 6}.items()):
        rows = [
            {"id": number, "sentence": row["text"], "label": str(int(row["label"] == "sky"))}
            for number, row in enumerate(sky_rows(count, seed=seed))
        ]
        lines = (json.dumps(row if part != "test" else {k: row[k] for k in ("id", "sentence")}) for row in rows)
        (work / f"{part}.json").write_text("\n".join(lines), "utf-8")
    printed = run("iflytek", "--data", ".", "--epochs", "4", "--lr", "2e-3", "--max-length", "16")
    assert ast.literal_eval(printed)["accuracy"] > 0.8
    found = [json.loads(line) for line in (work / "iflytek" / "predictions.json").read_text("utf-8").splitlines()]
    assert found == [{"id": number, "label": str(number % 2)} for number in range(6)]


def test_every_example_is_run_by_a_test():
    names = {path.stem for path in FOLDER.glob("*.py")}
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*_examples.py"))
    assert len(names) >= 7
    assert {name for name in names if f'"{name}"' not in tests} == set()


@pytest.mark.parametrize("page", ["docs/tasks.md", "docs/zh/tasks.md"])
def test_the_documents_say_what_does_the_work_of_each_example_of_bert4keras(page):
    text = (ROOT / page).read_text("utf-8")
    rows = re.findall(r"^\| `task_(\w+)\.py` \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}) == 24
    linked = re.findall(r"\(([^)\s]+/examples/[^)\s]+\.py)\)", text)
    assert len(linked) > 15
    assert [path for path in linked if not (ROOT / page).parent.joinpath(path).is_file()] == []
    assert [path.name for path in FOLDER.glob("*.py") if path.name not in text] == []
