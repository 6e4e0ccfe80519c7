"""`hanmo task fit`, `predict` and `evaluate`, as a user types them, on a tiny model and tiny data."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hanmo
from hanmo.cli.app import app
from hanmo.training.log import read_log

sys.path.append(str(Path(__file__).parent.parent / "tasks"))

from toy_tasks import model_folder, number_rows, sky_rows

QUICK = ("--model", "model", "--kind", "classify", "--train", "train.jsonl", "--dev", "dev.jsonl", "--device", "cpu")
SETTINGS = """
model = "model"
kind = "classify"
train = "train.jsonl"
dev = "dev.jsonl"
pooling = "mean"
device = "cpu"
steps = 4
max-length = 32
[set]
class_weights = { sky = 2.0 }
"""


def fill() -> None:
    model_folder(Path("model"))
    write("train.jsonl", sky_rows(400))
    write("dev.jsonl", sky_rows(40, seed=1))


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a model, data, and a run that learned the rule."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fill()
        said = done("fit", *QUICK, "--out", "run", "--epochs", 3, "--lr", 4e-3, "--pooling", "mean")
        Path("said.txt").write_text(said, "utf-8")
    return folder


@pytest.fixture
def work(trained, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("hanmo.training.log.draw_curves", lambda out, **labels: out / "curves.png")
    return tmp_path / "work"


def run(*words: object, text: str | None = None):
    return CliRunner().invoke(app, ["task", *map(str, words)], input=text)


def done(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return result.stderr


def refused(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_fit_shows_what_it_found_and_its_score(work):
    said = Path("said.txt").read_text("utf-8")
    for line in (
        "dev rows: 40 of dev.jsonl\n",
        "labels: earth 200, sky 200\n",
        "training rows: 400, of ",
        "windows: 400, for 0 rows are longer than one; 25 batches an epoch\n",
        "hanmo: curves: run/curves.png\n",
        "hanmo: predict with: hanmo task predict --model run/best TEXT\n",
    ):
        assert line in said
    assert said.index("labels: ") < said.index("step 0: ")
    score = hanmo.load("run").task.config.score
    assert score.value > 0.9 and f"hanmo: accuracy on dev.jsonl: {score.value:.4f}, 75 steps" in said
    assert Path("run/curves.png").read_bytes().startswith(b"\x89PNG")


def test_options_come_from_a_file_and_the_command_line_goes_first(work):
    Path("task.toml").write_text(SETTINGS, "utf-8")
    done("fit", "--config", "task.toml", "--out", "one", "--steps", 2)
    config = hanmo.load("one").task.config
    assert (config.pooling, config.max_length) == ("mean", 32)
    assert config.options == {"class_weights": {"sky": 2.0}}
    kept = json.loads(Path("one/options.json").read_text("utf-8"))
    assert (kept["steps"], kept["train"]) == (2, "train.jsonl")
    Path("task.json").write_text(json.dumps({"model": "model", "kind": "classify", "label": ["earth", "sky"]}), "utf-8")
    done("fit", "--config", "task.json", "--train", "train.jsonl", "--out", "two", "--steps", 1, "--device", "cpu")
    assert hanmo.load("two").labels == ("earth", "sky")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.toml",
            "kindd = 'classify'",
            "a.toml: the key 'kindd' is unknown; known are accumulate, attention, average, ",
        ),
        ("a.toml", "kind = ", "a.toml is no TOML file: "),
        ("a.json", "[]", "a.json holds a list; expected a JSON object"),
        ("a.json", '{"resume": true}', "a.json: the key 'resume' is unknown"),
        ("none.json", None, "none.json is missing"),
    ],
)
def test_a_wrong_file_of_options_is_refused(work, name, text, says):
    if text is not None:
        Path(name).write_text(text, "utf-8")
    assert says in refused("fit", "--config", name, "--out", "one")
    assert not Path("one").exists()


def test_texts_lines_and_objects_are_predicted(work):
    texts = run("predict", "--model", "run", "天地玄黄", "日月盈昃")
    found = [json.loads(line) for line in texts.stdout.splitlines()]
    assert [(each["text"], each["label"]) for each in found] == [("天地玄黄", "earth"), ("日月盈昃", "sky")]
    lines = '天地玄黄\n\n{"id": 3, "text": "日月盈昃"}\n'
    piped = run("predict", "--model", "run/best", text=lines)
    assert [json.loads(line) for line in piped.stdout.splitlines()] == [found[0], {"id": 3, **found[1]}]
    given = run("predict", "--model", "run", "天地玄黄", '{"id": 3, "text": "日月盈昃"}')
    assert given.stdout == piped.stdout
    Path("in.txt").write_text(lines, "utf-8")
    said = done("predict", "--model", "run", "--file", "in.txt", "--out", "out.jsonl")
    assert said == "hanmo: results of 2 rows are in out.jsonl\n"
    assert Path("out.jsonl").read_text("utf-8") == piped.stdout


def test_a_file_of_another_format_is_predicted(work):
    Path("in.tsv").write_text("text\tlabel\n天地玄黄\tsky\n日月盈昃\tearth\n", "utf-8")
    shutil.copy("in.tsv", "in.data")
    for words in (("in.tsv",), ("in.data", "--format", "table")):
        found = run("predict", "--model", "run", "--file", *words).stdout.splitlines()
        assert [json.loads(line)["label"] for line in found] == ["earth", "sky"]
    Path("pairs.tsv").write_text("a\tb\n天地\t玄黄\n", "utf-8")
    assert "pairs.tsv:2: it is a pair; the task is one of single texts" in refused(
        "predict", "--model", "run", "--file", "pairs.tsv"
    )
    Path("lines.csv").write_text('天地,"玄黄\n日月盈昃\n', "utf-8")
    Path("lines.tsv").write_text("天地\t玄黄\n日月\t盈昃\n", "utf-8")
    for name, first in (("lines.csv", '天地,"玄黄'), ("lines.tsv", "天地\t玄黄")):
        found = run("predict", "--model", "run", "--file", name).stdout.splitlines()
        assert len(found) == 2 and json.loads(found[0])["text"] == first
    alone = run("predict", "--model", "run", "天", "--format", "table")
    assert alone.exit_code == 2 and "give it with --file" in alone.stderr


def test_an_argument_that_is_an_object_is_a_row(work):
    result = run("predict", "--model", "run", '{"text": "天地玄黄"}')
    assert json.loads(result.stdout)["text"] == "天地玄黄"
    assert "text 1 holds 'text' twice" in refused("predict", "--model", "run", '{"text": "天", "text": "地"}')
    assert "text 1: 'text' is empty; expected a text" in refused("predict", "--model", "run", " ")


def test_a_separator_inside_a_line_does_not_end_it(work):
    result = run("predict", "--model", "run", text="天\u2028地\x85玄\r\n\n黄\n")
    assert [json.loads(line)["text"] for line in result.stdout.rstrip("\n").split("\n")] == ["天\u2028地\x85玄", "黄"]


def test_a_wrong_line_is_named_and_nothing_is_half_written(work):
    Path("in.txt").write_text('天地\n{"text": ""}\n', "utf-8")
    assert "in.txt:2: 'text' is empty" in refused("predict", "--model", "run", "--file", "in.txt", "--out", "out.jsonl")
    assert not Path("out.jsonl").exists()
    Path("in.txt").write_text("天地\n{text}\n", "utf-8")
    assert "in.txt:2 is not JSON" in refused("predict", "--model", "run", "--file", "in.txt")
    Path("in.txt").write_text("\n", "utf-8")
    assert "there is no text in in.txt" in refused("predict", "--model", "run", "--file", "in.txt")
    Path("in.txt").write_text('{"text": "天\u2028地"}\n天\u0085地\n', "utf-8")
    assert len(run("predict", "--model", "run", "--file", "in.txt").stdout.split("\n")) == 3
    folder = run("predict", "--model", "run", "天", "--out", "run")
    assert folder.exit_code == 2 and "is a directory" in folder.stderr
    both = run("predict", "--model", "run", "天", "--file", "in.txt")
    assert both.exit_code == 2 and "give texts or --file, not both" in both.stderr


def test_evaluate_prints_scores_and_draws_the_confusion_matrix(work):
    result = run("evaluate", "dev.jsonl", "--model", "run", "--confusion", "matrix.png")
    assert result.exit_code == 0, result.stderr
    score = hanmo.load("run").task.config.score
    assert f"accuracy  {score.value:.4f}\n" in result.stdout
    assert "rows      40\n" in result.stdout and "precision  recall      f1  true  predicted  label\n" in result.stdout
    assert result.stderr == "hanmo: confusion matrix: matrix.png, labels earth, sky\n"
    assert Path("matrix.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(run("evaluate", "dev.jsonl", "--model", "run", "--json").stdout)
    assert told["rows"] == 40 and told["scores"] == score.scores
    assert {label: each["true"] for label, each in told["labels"].items()} == {"earth": 20, "sky": 20}


def test_pictures_of_an_evaluation_are_drawn_into_a_folder(work):
    result = run("evaluate", "dev.jsonl", "--model", "run", "--plots", "pictures")
    assert result.exit_code == 0, result.stderr
    names = ["confusion", "reliability", "precision_recall"]
    assert result.stderr.splitlines() == [f"hanmo: picture: pictures/{name}.png" for name in names]
    assert sorted(path.stem for path in Path("pictures").iterdir()) == sorted(names)


def test_a_kind_without_pictures_prints_its_scores_and_says_so(work):
    write("numbers.jsonl", number_rows(40))
    data = ("--train", "numbers.jsonl", "--dev", "numbers.jsonl", "--device", "cpu")
    done("fit", "--model", "model", "--kind", "classify", *data, "--out", "numbers", "--steps", 2)
    result = run("evaluate", "numbers.jsonl", "--model", "numbers", "--plots", "pictures")
    assert result.exit_code == 0 and "spearman" in result.stdout
    assert "no pictures: they show labels, spans and relations" in result.stderr
    assert not Path("pictures").exists()
    refused = run("evaluate", "numbers.jsonl", "--model", "numbers", "--confusion", "matrix.png")
    assert refused.exit_code == 1 and refused.stdout == ""
    assert "a confusion matrix is of tasks with one label a text, or spans" in refused.stderr


def test_small_weights_compute_on_the_cpu(work, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    plain = json.loads(run("predict", "天地日玄", "--model", "run").stdout)
    small = json.loads(run("predict", "天地日玄", "--model", "run", "--weights", "int8", "--threads", 1).stdout)
    assert small["label"] == plain["label"] and 0 < abs(small["probability"] - plain["probability"]) < 0.1
    scores = json.loads(run("evaluate", "dev.jsonl", "--model", "run", "--weights", "float32", "--json").stdout)
    assert scores["scores"]["accuracy"] == hanmo.load("run").task.config.score.value
    wrong = run("predict", "天", "--model", "run", "--weights", "int4")
    assert wrong.exit_code == 2 and "--weights" in wrong.stderr


def test_explain_shows_the_characters_that_decide(work):
    lines = run("explain", "天地日玄", "--model", "run").stdout.splitlines()
    label, probability = lines[0].split("\t")
    assert label == "sky" and float(probability) > 0.5
    scores = {character: float(score) for character, score in (line.split("\t") for line in lines[1:])}
    assert list(scores) == list("天地日玄") and max(scores, key=scores.__getitem__) == "日"
    told = json.loads(run("explain", '{"text": "天地日玄"}', "--model", "run", "--label", "earth", "--json").stdout)
    assert told["label"] == "earth" and told["texts"] == ["天地日玄"] and min(told["scores"][0]) == told["scores"][0][2]
    assert done("explain", "天地日玄", "--model", "run", "--html", "page.html") == "hanmo: picture: page.html\n"
    assert Path("page.html").read_text("utf-8").startswith("<!doctype html>")
    assert "--label is 'sea'" in refused("explain", "天", "--model", "run", "--label", "sea")


def test_export_writes_a_folder_for_transformers(work):
    said = refused("export", "exported", "--model", "run")
    assert "pooling is 'mean', and BertForSequenceClassification has a pooler" in said and "use --form onnx" in said
    done("fit", *QUICK, "--out", "one", "--steps", 1)
    result = run("export", "exported", "--model", "one")
    assert result.exit_code == 0 and result.stdout == "exported\n", result.stderr
    told = json.loads(Path("exported/config.json").read_text("utf-8"))
    assert told["architectures"] == ["BertForSequenceClassification"] and told["id2label"] == {"0": "earth", "1": "sky"}
    assert "replace it with --force" in refused("export", "exported", "--model", "one")
    assert run("export", "exported", "--model", "one", "--force").exit_code == 0


def test_other_formats_are_read_by_every_command(work):
    for name in ("train", "dev"):
        rows = map(json.loads, Path(f"{name}.jsonl").read_text("utf-8").splitlines())
        Path(f"{name}.data").write_text("".join(f"{row['text']}\t{row['label']}\n" for row in rows), "utf-8")
    options = (
        "--model",
        "model",
        "--kind",
        "classify",
        "--train",
        "train.data",
        "--dev",
        "dev.data",
        "--device",
        "cpu",
    )
    done("fit", *options, "--format", "table", "--out", "one", "--steps", 1)
    tables = json.loads(run("evaluate", "dev.data", "--model", "run", "--json").stdout)
    assert tables == json.loads(run("evaluate", "dev.jsonl", "--model", "run", "--json").stdout)
    assert "format is 'conll'; expected one of rows" in refused("fit", *options, "--format", "conll", "--out", "two")


def test_seeds_give_mean_and_spread(work):
    said = done("fit", *QUICK, "--out", "many", "--seeds", 3, "--steps", 8, "--lr", 4e-3, "--seed", 5)
    told = json.loads(Path("many/scores.json").read_text("utf-8"))
    values = [run["accuracy"] for run in told["runs"]]
    assert [Path(run["folder"]).parent.name for run in told["runs"]] == ["seed-5", "seed-6", "seed-7"]
    mean = sum(values) / 3
    assert told["mean"] == pytest.approx(mean)
    assert told["spread"] == pytest.approx((sum((value - mean) ** 2 for value in values) / 2) ** 0.5)
    assert f"hanmo: accuracy of 3 runs: {told['mean']:.4f} ± {told['spread']:.4f} (" in said
    assert "run 3 of 3: seed-7" in said
    assert "many holds a run; go on with it by --resume" in refused("fit", *QUICK, "--out", "many", "--seeds", 3)
    done("fit", "--out", "many", "--resume")
    assert json.loads(Path("many/scores.json").read_text("utf-8")) == told


def test_training_tricks_are_named(work):
    done("fit", *QUICK, "--out", "one", "--wrap", "fgm:epsilon=0.3", "--wrap", "gradient_penalty", "--steps", 2)
    done("fit", *QUICK, "--out", "two", "--steps", 2)
    losses = [
        [record["loss"] for record in read_log(Path(name) / "log.jsonl") if "loss" in record] for name in ("one", "two")
    ]
    assert len(losses[0]) == len(losses[1]) == 2 and losses[0] != losses[1]


def test_folds_measure_every_row_once(work):
    write("small.jsonl", sky_rows(30) + sky_rows(2))
    options = ("--model", "model", "--kind", "classify", "--train", "small.jsonl", "--device", "cpu", "--steps", 1)
    said = done("fit", *options, "--out", "folds", "--folds", 3)
    measured = [re.fullmatch(r"fold-\d: accuracy [\d.]+ on its (\d+) rows", line) for line in said.splitlines()]
    assert sum(int(found[1]) for found in measured if found) == 32
    assert "accuracy of 3 runs: " in said and Path("folds/fold-3/best").exists()
    assert "chosen on a share of the training rows, not on the fold that the score is of" in said
    told = json.loads(Path("folds/scores.json").read_text("utf-8"))
    assert (told["chosen_on"], told["measured_on"]) == ("10% of a run's training rows", "a run's fold")
    assert "leave --dev out" in refused("fit", *options, "--dev", "dev.jsonl", "--folds", 3, "--out", "one")
    assert "--seeds is 3, --folds is 3; give one of them" in refused(
        "fit", *options, "--folds", 3, "--seeds", 3, "--out", "one"
    )
    assert "99 folds of 30 different texts" in refused("fit", *options, "--folds", 99, "--out", "one")


def test_a_run_goes_on_with_its_own_options(work):
    done("fit", *QUICK, "--out", "one", "--steps", 2)
    done("fit", "--out", "one", "--resume", "--steps", 4)
    assert len(list(Path("one").glob("last-00000004"))) == 1
    other = run("fit", "--out", "model", "--resume")
    assert other.exit_code == 1 and "model holds no run to go on with" in other.stderr


@pytest.mark.parametrize("missing", ["model", "kind", "train"])
def test_what_is_missing_is_wrong_usage(work, missing):
    place = QUICK.index(f"--{missing}")
    result = run("fit", *QUICK[:place], *QUICK[place + 2 :], "--out", "one")
    assert result.exit_code == 2 and f"give --{missing}" in result.stderr
    assert not Path("one").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--kind", "sorcery"), "--kind is 'sorcery'; expected one of classify"),
        (("--kind", "tag", "--pooling", "mean"), "--pooling is 'mean', which kind 'tag' does not use; leave"),
        (("--stride", 63), "--stride is 63; expected at most 62, the tokens that a window has room for"),
        (("--precision", "bfloat16"), "--precision is 'bfloat16', whose weights are too coarse"),
        (("--model", "bare"), "no vocabulary beside "),
        (("--head", "hydra"), "--head is 'hydra'; expected one of linear for kind 'classify'"),
        (("--max-length", 65), "--max-length is 65; the model of "),
        (("--train", "empty.jsonl"), "empty.jsonl is empty; expected labelled rows"),
        (("--train", "none.jsonl"), "none.jsonl is missing"),
        (
            ("--dev", "strange.jsonl"),
            "strange.jsonl:2: the label 'sea' is not in the training data, which has earth, sky",
        ),
        (
            ("--train", "strange.jsonl", "--label", "sky"),
            "strange.jsonl:2: the label 'sea' is not in the configuration",
        ),
        (("--train", "spans.jsonl"), "spans.jsonl:1: 'label' is missing; expected a string"),
        (("--set", "class_weights"), "the setting 'class_weights' has no value; expected NAME=VALUE"),
        (("--set", "class_weights=3"), "class_weights is 3; expected labels of the task, each with a number"),
        (
            ("--kind", "tag", "--train", "inclusive.jsonl"),
            "inclusive.jsonl:1: the span 0:1 is '天', but its text says '天地'",
        ),
        (
            ("--kind", "tag", "--train", "crossing.jsonl", "--dev", "crossing.jsonl"),
            "crossing.jsonl:1: the spans 0:2 A and 1:3 B overlap",
        ),
        (("--device", "abacus"), "--device is 'abacus'; expected cpu, cuda, cuda:0 …, mps or auto"),
        (("--wrap", "luck"), "--wrap is 'luck'; expected one of fgm, pgd"),
        (("--wrap", "fgm:epsilon=much"), "wrap 'fgm': epsilon is 'much'; expected a number"),
        (("--wrap", "r_drop:beta=1"), "got an unexpected keyword argument 'beta'"),
        (("--seeds", 1), None),
    ],
)
def test_bad_input_is_one_clear_error(work, words, says):
    Path("empty.jsonl").write_text("", "utf-8")
    write("strange.jsonl", [{"text": "天", "label": "sky"}, {"text": "地", "label": "sea"}])
    write("spans.jsonl", [{"text": "天地", "spans": [{"start": 0, "stop": 1, "label": "A"}]}])
    write("inclusive.jsonl", [{"text": "天地", "spans": [{"start": 0, "stop": 1, "label": "A", "text": "天地"}]}])
    crossing = [{"start": 0, "stop": 2, "label": "A"}, {"start": 1, "stop": 3, "label": "B"}]
    write("crossing.jsonl", [{"text": "天地玄黄", "spans": crossing}])
    shutil.copytree("model", "bare")
    Path("bare/vocab.txt").unlink()
    if says is None:
        result = run("fit", *QUICK, *words, "--out", "one")
        assert result.exit_code == 2 and "--seeds" in result.stderr
    else:
        assert says in refused("fit", *QUICK, *words, "--out", "one")
    assert not Path("one").exists()


def test_a_run_is_kept_apart_from_models_and_files(work):
    assert "--out is 'model', which holds a model; expected a new folder" in refused("fit", *QUICK, "--out", "model")
    assert not Path("model/options.json").exists()
    assert "--out is 'dev.jsonl', a file; expected a folder" in refused("fit", *QUICK, "--out", "dev.jsonl")


def test_a_run_is_not_resumed_with_changed_data(work):
    done("fit", *QUICK, "--out", "one", "--steps", 2)
    write("train.jsonl", sky_rows(399))
    result = run("fit", "--out", "one", "--resume", "--steps", 40)
    assert result.exit_code == 1
    assert "one/last-00000002 was trained with other training data; resume with the same" in result.stderr
    write("train.jsonl", sky_rows(400))
    done("fit", "--out", "one", "--resume", "--steps", 40)


def test_a_task_without_its_vocabulary_names_no_option_that_is_not_there(work):
    Path("run/best/vocab.txt").unlink()
    said = refused("predict", "--model", "run", "天")
    assert "vocab.txt or *.model there" in said and "tokenizer" not in said


def test_a_folder_that_is_no_task_or_lacks_the_head_is_refused(work):
    assert "model/task.json is missing, so model is not the folder of a task" in refused(
        "predict", "--model", "model", "天"
    )
    shutil.copy("run/best/task.json", "model")
    assert "give the folder of a task as hanmo.tasks.fit wrote it" in refused("predict", "--model", "model", "天")
    write("scores.jsonl", [{"text": "天", "score": 1.0}])
    assert "scores.jsonl:1: 'label' is missing" in refused("evaluate", "scores.jsonl", "--model", "run")
    write("other.jsonl", [{"text": "天", "label": "sea"}])
    assert "other.jsonl:1: the label 'sea' is not in the task of " in refused(
        "evaluate", "other.jsonl", "--model", "run"
    )


def test_a_chinese_locale_has_chinese_messages(work, monkeypatch):
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    said = done("fit", *QUICK, "--out", "one", "--steps", 1)
    assert "标签：earth 200, sky 200\n" in said and "验证数据：dev.jsonl 的 40 行\n" in said
    assert "第 1 步：accuracy " in said and "预测：hanmo task predict --model one/best 文本\n" in said
