"""The examples about training tricks, compression and attribution run as they are, on tiny data of a rule."""

import ast
import contextlib
import io
import json
import runpy
from pathlib import Path

import pytest
from toy_tasks import model_folder, sky_rows

from hanmo.tasks import TaskArgs, TaskConfig, fit

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tasks"


def run(name: str, *words: str) -> list[str]:
    """Run the main function of an example, and return the lines that it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(FOLDER / f"{name}.py"))["main"](list(words))
    return printed.getvalue().splitlines()


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """Make the folder of a model, and the files of CLUE's IFLYTEK and of bert4keras's sentiment data."""
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "model", positions=128)
    for names, count, seed in ((("train",), 400, 0), (("dev", "valid"), 60, 1), (("test",), 60, 2)):
        rows = [(row["text"], int(row["label"] == "sky")) for row in sky_rows(count, seed=seed)]
        lines = [json.dumps({"sentence": text, "label": str(label)}, ensure_ascii=False) for text, label in rows]
        for name in names:
            Path(f"{name}.json").write_text("\n".join(lines) + "\n", "utf-8")
            Path(f"sentiment.{name}.data").write_text("".join(f"{t}\t{label}\n" for t, label in rows), "utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iflytek_adversarial_training", "iflytek_gradient_penalty"])
def test_long_texts_with_a_trick(work, name):
    options = ("--model", "model", "--data", ".", "--epsilon", "0.1", "--epochs", "6", "--batch", "16", "--lr", "2e-3")
    (printed,) = run(name, *options)
    assert ast.literal_eval(printed)["accuracy"] > 0.9


@pytest.mark.slow
def test_few_labels_and_many_texts(work):
    options = ("--model", "model", "--data", ".", "--batch", "16", "--lr", "2e-3")
    few = ("--labeled", "0.5", "--epsilon", "0.1", "--steps", "150")
    (printed,) = run("sentiment_virtual_adversarial_training", *options, *few)
    assert ast.literal_eval(printed)["accuracy"] > 0.8


@pytest.mark.slow
def test_theseus_and_distillation(work):
    options = ("--model", "model", "--data", ".", "--blocks", "1", "--epochs", "5", "--batch", "16", "--lr", "2e-3")
    printed = run("iflytek_bert_of_theseus", *options)
    assert [line.split()[0] for line in printed] == ["predecessor", "theseus", "successor"]
    assert all(float(line.split()[2]) > 0.85 for line in printed)
    printed = run("distillation", "--teacher", "theseus/predecessor", *options)
    assert [line.split()[0] for line in printed] == ["labels", "teacher"]
    assert all(float(line.split()[2]) > 0.85 for line in printed)


def test_characters_that_decide(work):
    args, config = TaskArgs(batch=16, epochs=5, lr=2e-3), TaskConfig(kind="classify", pooling="mean")
    fit("model", train=sky_rows(400), dev=sky_rows(60, seed=1), config=config, out="run", args=args)
    words = ("--text", "天地日宇宙", "--by", "largest", "--html", "why.html")
    label, text, scores = run("sentiment_integrated_gradients", "--task", "run", *words)
    assert label.startswith("sky 0.") or label.startswith("sky 1.")
    assert text == "天地日宇宙"
    assert max(scores.split(", "), key=lambda each: float(each.split()[1])).startswith("日")
    assert "日</span>" in Path("why.html").read_text("utf-8")
