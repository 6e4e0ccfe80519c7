"""`hanmo write`: the text alone on stdout, everything else on stderr, one line for every mistake."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

import hanmo
from hanmo.checkpoint.save import save
from hanmo.cli.app import app
from hanmo.families import FAMILIES
from hanmo.model import Model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气不错可以去跑步床前明月光疑是地上霜，。"]
TEXT = "\n".join(WORDS)
HANMO = [sys.executable, "-m", "hanmo.cli"]


@pytest.fixture
def checkpoint(tmp_path):
    """Save a small random GPT2_ML with its vocabulary; call with changes of the weights or the words."""

    def make(change=lambda model: None, words=TEXT):
        config = FAMILIES["gpt2_ml"].tensorflow.config(
            {
                "vocab_size": len(WORDS),
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 64,
            }
        )
        model = Model(config).initialize(3)
        with torch.no_grad():
            change(model)
        save(model, tmp_path / "model.ckpt", form="tensorflow")
        (tmp_path / "vocab.txt").write_bytes(words.encode("utf-8"))
        return str(tmp_path / "model.ckpt")

    return make


def run(*arguments, **options):
    return CliRunner().invoke(app, ["write", *arguments], prog_name="hanmo", **options)


def test_special_tokens_in_a_prompt_are_read_with_a_note_and_can_be_plain_characters(checkpoint):
    path = checkpoint()
    how = ("--model", path, "--seed", "7", "--max-chars", "9")
    result = run("[CLS]今天，[SEP]", *how)
    assert result.exit_code == 0 and result.stdout.startswith("[CLS]今天，[SEP]")
    assert result.stderr.startswith("hanmo: read [CLS], [SEP] in the prompt as special tokens; --no-parse-special ")
    plain = run("[CLS]今天，[SEP]", *how, "--no-parse-special")
    assert plain.exit_code == 0 and plain.stderr == "" and plain.stdout != result.stdout
    assert plain.stdout.startswith("[CLS]今天，[SEP]")
    assert run("今天龘", *how).stderr == ""


def test_a_prompt_is_cut_into_words_where_the_vocabulary_holds_them_or_one_says_so(checkpoint):
    words = [*WORDS[:-3], "步床", "今天", "床前"]
    how = ("--model", checkpoint(words="\n".join(words)), "--temperature", "0", "--max-chars", "9")
    result = run("今天", *how)
    assert result.exit_code == 0 and result.stdout.startswith("今天")
    assert run("今天", *how, "--pre-tokenize").stdout == result.stdout
    plain = run("今天", *how, "--no-pre-tokenize")
    assert plain.exit_code == 0 and plain.stdout != result.stdout
    loaded = [hanmo.load(how[1], pre_tokenize=cut).tokenizer.encode("今天", ends=False).ids for cut in (None, False)]
    assert loaded == [[words.index("今天")], [words.index("今"), words.index("天")]]
    writer = hanmo.open_writer(how[1], weights="float32", pre_tokenize=False)
    assert writer.tokenizer.encode("今天", ends=False).ids == loaded[1]


def test_stdout_holds_the_text_alone_and_begins_with_the_prompt(checkpoint):
    path = checkpoint()
    result = run("今天", "--model", path, "--seed", "7", "--max-chars", "9")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout == hanmo.load(path).write("今天", seed=7, max_chars=9)[0] + "\n"
    assert run("今天", "--model", path, "--seed", "7", "--max-chars", "9", "--no-stream").stdout == result.stdout


def test_several_texts_and_prompts_are_parted_by_an_empty_line(checkpoint):
    path = checkpoint()
    expected = [hanmo.load(path).write(text, n=2, seed=7, max_chars=6) for text in ("今天", "床前")]
    result = run("今天", "床前", "--model", path, "--seed", "7", "--max-chars", "6", "-n", "2")
    assert result.stdout == "\n\n".join(text for texts in expected for text in texts) + "\n"


def test_json_is_one_object_a_text(checkpoint):
    path = checkpoint()
    result = run("今天", "--model", path, "--seed", "7", "--max-chars", "6", "-n", "2", "--json")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["sample"] for record in records] == [0, 1]
    assert [record["text"] for record in records] == hanmo.load(path).write("今天", n=2, seed=7, max_chars=6)
    assert {record["prompt"] for record in records} == {"今天"} and {record["seed"] for record in records} == {7}


def test_the_prompt_may_come_from_standard_input(checkpoint):
    path = checkpoint()
    asked = ("--model", path, "--seed", "7", "--max-chars", "6")
    assert run(*asked, input="今天\n").stdout == run("今天", *asked).stdout
    result = run(*asked, input=b"\xff\xfe")
    assert result.exit_code == 1 and "standard input is not UTF-8" in result.stderr


def test_the_last_position_is_told(checkpoint):
    result = run(
        "今天", "--model", checkpoint(), "--seed", "3", "--stop", "none", "--max-chars", "999", "--top-k", "20"
    )
    assert "stopped early" in result.stderr or len(result.stdout) < 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["今天", "--model", "/nowhere/model.ckpt"], "no checkpoint at /nowhere/model.ckpt"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(arguments, message):
    assert_one_line(run(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the prompt is empty"),
        (["喵喵"], "has no character that the vocabulary of 27 tokens knows"),
        (["\ud800"], "lone surrogate U+D800"),
        (["今\0天"], "U+0000 at position 1"),
        (["今" * 65], "65"),
        (["今天", "-n", "0"], "-n is 0"),
        (["今天", "--top-k", "0"], "--top-k is 0"),
        (["今天", "--top-p", "0"], "--top-p is 0"),
        (["今天", "--temperature", "-1"], "--temperature is -1"),
        (["今天", "--max-chars", "0"], "--max-chars is 0"),
        (["今天", "--device", "toaster"], "--device is 'toaster'; expected cpu, cuda"),
        (["今天", "--device", "cuda", "--weights", "int4"], "these run on a CPU"),
        (["今天", "--family", "gpt9"], "--family is 'gpt9'; known are"),
        (["今天", "--tokenizer", "/nowhere/vocab.txt"], "there is no tokenizer at /nowhere/vocab.txt"),
        (["今天", "--config", "/nowhere/config.json"], "no configuration at /nowhere/config.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(checkpoint, arguments, message):
    assert_one_line(run(*arguments, "--model", checkpoint()), message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("\ufeff" + "\n".join(WORDS), "byte order mark"),
        ("\r\n".join(WORDS), "Windows line ends"),
        ("\n".join([*WORDS, "喵"]), "has 28 words, the model of"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_one_line(checkpoint, words, message):
    assert_one_line(run("今天", "--model", checkpoint(words=words)), message)


def test_weights_that_are_not_numbers_are_one_line(checkpoint):
    path = checkpoint(lambda model: model.token.weight.fill_(math.nan))
    assert_one_line(run("今天", "--model", path), "NaN")


@pytest.mark.parametrize("weights", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_small_weights_write_without_torch(checkpoint, tmp_path, monkeypatch, weights):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["write", "今天", "--model", checkpoint(), "--seed", "7", "--max-chars", "9", "--weights", weights]
    script = (
        "import sys; from hanmo.cli.app import app\n"
        "try: app(sys.argv[1:], prog_name='hanmo')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    texts = []
    for torch_needed in (True, False):
        result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
        assert result.stderr == f"{torch_needed}\n"
        texts.append(result.stdout)
    assert texts[0] == texts[1] and texts[0].startswith("今天")


def test_wrong_usage_is_told_with_exit_code_2(checkpoint):
    assert run("今天", "--weights", "float3").exit_code == 2
    assert run("今天", "--nothing").exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_keeps_what_was_written_so_far(checkpoint):
    path = checkpoint(lambda model: model.token.weight[3].fill_(-9))
    command = [*HANMO, "write", "今天", "--model", path, "--max-chars", "9", "--stop", "none"]
    script = (  # each step waits, so that the signal falls into the middle of the text
        "import sys, time; from hanmo.inference.torch_engine import TorchRows; step = TorchRows.step\n"
        "TorchRows.step = lambda self, ids: (time.sleep(0.5), step(self, ids))[1]\n"
        "from hanmo.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command[3:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = process.stdout.read(3)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first.startswith("今天") and out.endswith("\n") and len(out) < 10
    assert err == "hanmo: interrupted\n"


def assert_one_line(result, message):
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("hanmo: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_help_shows_the_defaults_that_nothing_is_given_for():
    shown = " ".join(run("--help", env={"COLUMNS": "200"}).stdout.replace("│", " ").split())
    for default in ("the small one inside Hanmo", "the model's, or 5", "128, or --max-chars if less"):
        assert f"[default: ({default})]" in shown, default


def test_beams_are_ranked_by_the_length_penalty(checkpoint):
    path = checkpoint(lambda model: [each.mul_(8) for each in model.parameters() if each.ndim > 1])
    options = ("--model", path, "--beams", "3", "--max-tokens", "6", "--stop", "none", "--json")
    sums, means = (json.loads(run("今天", *options, *more).stdout) for more in ((), ("--length-penalty", "1")))
    found = hanmo.load(path).write_detailed("今天", beams=3, max_tokens=6, stop=None, length_penalty=1.0)
    assert (means["text"][2:], means["score"]) == (found[0].text, found[0].score) and means["score"] > sums["score"]
    result = run("今天", "--model", path, "--length-penalty", "1")
    assert result.exit_code == 1 and "--length-penalty is 1.0" in result.stderr
