"""`hanmo inspect` tells people in words and programs in JSON, one checkpoint or a folder of them."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256

import pytest
from typer.testing import CliRunner

from hanmo.checkpoint import recognise as recognition
from hanmo.cli.app import app
from hanmo.cli.screen import progress
from hanmo.pipeline import SMALL

INDEX = "mega-bert-tok-tf_model.ckpt-100000.index"


def run(*args: object):
    return CliRunner().invoke(app, ["inspect", *map(str, args)])


@pytest.fixture
def folder(data, tmp_path):
    for file in (data / "goldens" / "gpt2_ml").glob("model.ckpt.*"):
        shutil.copy(file, tmp_path)
    shutil.copy(data / "goldens" / "gpt2_ml" / "config.json", tmp_path)
    return tmp_path


def test_json_alone_is_on_stdout(indexes):
    result = run(indexes / INDEX, "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (told["family"], told["parameters"]) == ("gpt2_ml", 1_393_944_576)
    assert (told["vocab_rows"], told["dtype"]) == (21130, "float32")
    assert told["released"] == "GPT2_ML 1.5B, 15 GB corpus, BERT vocabulary (model.ckpt-100000)"


@pytest.mark.parametrize("name", ["", "model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_folder_prefix_index_and_data_file_are_the_same_checkpoint(folder, name):
    told = json.loads(run(folder / name, "--json").stdout)
    assert (told["path"], told["parameters"]) == (str(folder / "model.ckpt"), 31072)


def test_people_read_what_it_is_and_which_config_it_needs(data, indexes):
    lines = run(indexes / INDEX).stdout.splitlines()
    told = dict(line.split(maxsplit=1) for line in lines if line[:1].isalpha())
    assert told["family"] == "gpt2_ml"
    assert told["parameters"] == "1,393,944,576 in 772 tensors, float32"
    assert told["vocabulary"] == "21,130 rows"
    assert told["sizes"] == "48 layers, hidden size 1,536, 24 heads of 64, feed-forward 6,144, 1,024 positions"
    assert "beside it    AdaFactor's state: 1,062 tensors" in lines
    assert told["note"] == "only the index is here; the data has 5,585,033,776 bytes"
    shown = json.loads("\n".join(lines[lines.index("{") :]))
    assert (shown["vocab_size"], shown["num_attention_heads"]) == (21130, 24)


def test_a_vocabulary_of_words_is_said(folder):
    tokens = [f"x{n}" for n in range(110)] + [first + second for first in "今天气" for second in "不错很"]
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", *tokens]), "utf-8")
    assert "words        jieba cuts texts into words first" in run(folder).stdout
    assert json.loads(run(folder, "--json").stdout)["pre_tokenize"] == "jieba"
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", *tokens[:110]]), "utf-8")
    assert "jieba" not in run(folder).stdout
    assert json.loads(run(folder, "--json").stdout)["pre_tokenize"] is None


def test_people_read_what_does_not_fit(folder):
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 999}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("x\n" * 118)
    out = run(folder).stdout
    assert "does not fit config.json says vocab_size is 999; the checkpoint holds 120\n" in out
    assert "config.json  config.json; vocab_size must change, see --config\n" in out
    assert "vocabulary   120 rows, 118 words in vocab.txt\n" in out


def test_an_encoder_decoder_has_two_depths(data):
    assert "sizes        3 + 3 layers, hidden size 32" in run(data / "goldens" / "t5_1.1").stdout


def test_the_config_alone_can_be_saved_and_then_fits(folder):
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 999, "hidden_dropout_prob": 0.25}
    (folder / "config.json").write_text(json.dumps(config))
    result = run(folder, "--config")
    assert json.loads(result.stdout) == config | {"vocab_size": 120}
    (folder / "config.json").write_text(result.stdout)
    assert "does not fit" not in run(folder).stdout


def test_a_folder_of_several_lists_one_a_line(indexes):
    result = run(indexes)
    first, second = result.stdout.splitlines()
    assert first.split()[:5] == [INDEX.removesuffix(".index"), "gpt2_ml", "1,393,944,576", "parameters", "float32"]
    assert "21,130 rows" in first and "15 GB" in first
    assert "8,021 rows " in second and "30 GB" in second
    assert first.index("float32") == second.index("float32")
    assert "holds 2 checkpoints; give the path of one" in result.stderr
    both = json.loads(run(indexes, "--json").stdout)
    assert [one["vocab_rows"] for one in both] == [21130, 8021]


def test_a_broken_one_of_several_says_why_beside_the_others(folder):
    (folder / "broken.index").write_bytes(b"not an index")
    result = run(folder)
    assert result.exit_code == 0
    broken, whole = result.stdout.splitlines()
    assert broken.startswith("broken      not readable: ")
    assert whole.startswith("model.ckpt  gpt2_ml  31,072 parameters")
    told = json.loads(run(folder, "--json").stdout)
    assert set(told[0]) == {"path", "error"} and told[1]["family"] == "gpt2_ml"


def test_a_folder_of_broken_ones_alone_fails(tmp_path):
    for name in ("a.index", "b.index"):
        (tmp_path / name).write_bytes(b"no")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"hanmo: none of the 2 checkpoints in {tmp_path} can be read"


def test_config_of_several_must_name_one(indexes):
    result = run(indexes, "--config")
    assert result.exit_code == 1
    assert "holds 2 checkpoints (mega-bert-tok" in result.stderr and "give the path of one of them" in result.stderr


def test_json_and_config_together_are_wrong_usage(folder):
    assert run(folder, "--json", "--config").exit_code == 2


def test_the_sum_of_a_released_file_is_said_and_checked(folder, monkeypatch):
    data = folder / "model.ckpt.data-00000-of-00001"
    right = sha256(data.read_bytes()).hexdigest()
    assert f"SHA256       {right}  {data.name}\n" in run(folder, "--sha256").stdout
    known = next(iter(recognition.RELEASED.values()))
    monkeypatch.setattr(recognition, "RELEASED", {("gpt2_ml", 120, 3, 32): replace(known, sha256=right)})
    result = run(folder, "--sha256")
    assert result.exit_code == 0 and f"{data.name}, the released file\n" in result.stdout
    with data.open("ab") as file:
        file.write(b"?")
    result = run(folder, "--sha256", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"hanmo: {folder / 'model.ckpt'} is not the released file: its SHA256 is ")
    assert json.loads(result.stdout)["problems"]


def test_a_progress_bar_is_for_terminals_alone(capsys, monkeypatch):
    with progress("summing") as show:
        show(1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress("summing") as show:
        show(1, 2)
    out, err = capsys.readouterr()
    assert out == "" and "summing" in err


def test_weights_stored_in_8_bits_are_said_to_be():
    told = CliRunner().invoke(app, ["inspect", str(SMALL)]).stdout
    assert "note         matrices are stored in 8 bits with a scale for each row, and read as float32" in told
