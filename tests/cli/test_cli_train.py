"""`hanmo finetune` and `hanmo pretrain`, as a user types them, on models and texts that are tiny."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import hanmo
from hanmo.checkpoint.match import config_of
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.cli.app import app
from hanmo.errors import ConfigError, HanmoError
from hanmo.training.checkpoints import locked, newest, read_state
from hanmo.training.log import draw_curves, read_log

POEMS = [
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "红豆生南国，春来发几枝。愿君多采撷，此物最相思。",
]
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
QUICK = ("--sequence", 28, "--batch", 4, "--steps", 12, "--evaluate-every", 4, "--device", "cpu")
BRIEF = (*QUICK, "--steps", 2)


def vocabulary(folder: Path, size: int = 118) -> Path:
    tokens = [*MARKS, *sorted({character for poem in POEMS for character in poem})]
    tokens += [f"[unused{number}]" for number in range(size - len(tokens))]
    path = folder / "vocab.txt"
    path.write_text("".join(token + "\n" for token in tokens), "utf-8")
    return path


@pytest.fixture
def work(tmp_path, data, monkeypatch):
    """A folder with a tiny GPT2_ML as `model`, a vocabulary and poems, in which the commands are typed.

    Curves are not drawn, which would take longer than the training.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hanmo.finetune.draw_curves", lambda out, **labels: out / "curves.png")
    fill(data)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A folder like `work` with a finished run in it, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fill(data)
        done("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *QUICK)
    return folder


def fill(data: Path) -> None:
    copy(data, "gpt2_ml_original")
    Path("poems.txt").write_text("\n".join(POEMS * 6), "utf-8")
    lines = [json.dumps({"source": poem[:5], "target": poem[6:11]}, ensure_ascii=False) for poem in POEMS]
    Path("pairs.jsonl").write_text("\n".join(lines * 3), "utf-8")


def copy(data: Path, name: str) -> None:
    shutil.rmtree("model", ignore_errors=True)
    shutil.copytree(data / "goldens" / name, "model")
    for other in [*Path("model").glob("*.npz"), *Path("model").glob("cases.json")]:
        other.unlink()
    vocabulary(Path("model"))


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return result.stderr


def scores(out: str) -> list[float]:
    found = [record["evaluation"] for record in read_log(Path(out) / "log.jsonl") if "evaluation" in record]
    return [record.get("bits_per_character", record.get("loss")) for record in found]


def test_finetuning_makes_a_model_that_writes_the_poems(work, monkeypatch):
    monkeypatch.setattr("hanmo.finetune.draw_curves", draw_curves)
    said = done(
        "finetune", "--model", "model", "--data", "poems.txt", "--document", "line", "--out", "run", "--sequence", 28,
        "--batch", 8, "--steps", 60, "--lr", 3e-3, "--prompt", "春眠", "--device", "cpu",
    )  # fmt: skip
    assert "planned: " in said and "update in backward" in said
    assert "held out: 1 of 24 documents" in said and "measured " in said
    assert "hanmo write 今天天气不错 --model run/best" in said
    found = scores("run")
    assert len(found) == 11 and found[-1] < 0.2 * found[0]
    assert f"{found[0]:.4f} before, {min(found):.4f} after" in said
    assert Path("run/samples.txt").read_text("utf-8").count('"春眠"\n春眠') == 11
    assert Path("run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in Path("run/best").iterdir()} == {"hanmo.json", "model.safetensors", "vocab.txt"}
    written = run("write", "床前", "--model", "run/best", "--top-k", 1, "--max-chars", 10)
    assert written.exit_code == 0 and written.stdout.startswith("床前明月光")


def test_a_run_goes_on_by_its_own_options_and_is_not_begun_twice(work):
    begin = ("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *QUICK)
    done(*begin)
    again = run(*begin)
    assert again.exit_code == 1 and "run holds a run; go on with it by --resume" in again.stderr
    Path("poems.txt").write_text("what was packed is read again", "utf-8")
    done("finetune", "--out", "run", "--resume", "--steps", 20)
    assert newest(Path("run"), "last").name == "last-00000020"
    wrong = run("finetune", "--out", "run", "--resume", "--lr", 0.5)
    assert wrong.exit_code == 1 and "was trained with --lr 0.0001, now it is 0.5" in wrong.stderr
    other = run("pretrain", "--out", "run", "--resume")
    assert other.exit_code == 1 and "begun by another command than pretrain" in other.stderr
    none = run("finetune", "--out", "nothing", "--resume")
    assert none.exit_code == 1 and "nothing holds no run to go on with" in none.stderr


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("options.json", b"[" * 100_000, "is not JSON: it is nested too deeply"),
        ("options.json", b"[]", "holds a list; expected a JSON object"),
        ("options.json", {"lr": "fast"}, "says that lr is 'fast'"),
        ("options.json", {"data": 5}, "says that data is 5"),
        ("options.json", {"batch": []}, "says that batch is []"),
        ("chosen.json", b"\xff", "is not JSON: it is not UTF-8"),
        ("chosen.json", b'{"choice": 5}', "chosen.json does not hold the choice that the run was begun with"),
        ("chosen.json", b'{"choice": {"precision": 5}}', "precision is 5; expected one of"),
        ("last-00000012/state.pt", b"", "state.pt cannot be read"),
        ("last-00000012/model.safetensors", bytes(8), "is no valid safetensors file"),
        ("log.jsonl", b"\xff\xfe\n", "log.jsonl line 1 is not JSON"),
        ("log.jsonl", b"{}\n", "log.jsonl line 1 is no record of a step; remove that line"),
    ],
)
def test_a_run_whose_files_are_damaged_says_which(finished, tmp_path, monkeypatch, name, content, says):
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    path = Path("run") / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text("utf-8")) | content).encode()
    path.write_bytes(content)
    result = run("finetune", "--out", "run", "--resume", "--steps", 20)
    assert result.exit_code == 1 and says in result.stderr, result.stderr or result.exception


def test_a_run_on_pairs_is_not_resumed_with_other_pairs(work, data):
    copy(data, "bert")
    done("finetune", "--model", "model", "--data", "pairs.jsonl", "--mask", "prefix", "--out", "run", *BRIEF)
    pairs = Path("pairs.jsonl").read_text("utf-8").splitlines()
    Path("pairs.jsonl").write_text("\n".join(pairs[1:]), "utf-8")
    result = run("finetune", "--out", "run", "--resume", "--steps", 4)
    assert result.exit_code == 1 and "run/last-00000002 was trained with other training data; resume" in result.stderr
    Path("pairs.jsonl").write_text("\n".join(pairs), "utf-8")
    done("finetune", "--out", "run", "--resume", "--steps", 4)


def test_a_run_that_cuts_texts_into_words_makes_a_model_that_does(work):
    tokens = Path("model/vocab.txt").read_text("utf-8").split("\n")
    Path("model/vocab.txt").write_text("\n".join([*tokens[:-2], "明月光", ""]), "utf-8")
    kept = []
    for choice in ("--pre-tokenize", "--no-pre-tokenize"):
        out = f"out{choice}"
        done("finetune", "--model", "model", "--data", "poems.txt", "--out", out, *QUICK, "--steps", 1, choice)
        kept.append(hanmo.load(f"{out}/best").tokenizer.encode("明月光", ends=False).ids)
    assert kept == [[117], [tokens.index(character) for character in "明月光"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("finetune", "--data", "poems.txt"), "give --model"),
        (("finetune", "--model", "model"), "give --data"),
        (("pretrain", "--data", "poems.txt", "--tokenizer", "model"), "give --config"),
        (("pretrain", "--data", "poems.txt", "--config", "model/config.json"), "give --tokenizer"),
    ],
)
def test_what_is_missing_is_wrong_usage(work, words, says):
    result = run(*words, "--out", "run")
    assert result.exit_code == 2 and says in result.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--memory", "100KiB"), "training needs "),
        (("--sequence", 100), "--sequence is 100; the model knows 48 positions"),
        (("--data", "none.txt"), "none.txt is not there"),
        (("--held-out", 2), "the share held out is 2.0; expected a number between 0 and 1"),
        (("--valid", "short.txt", "--data", "binary.txt"), "binary.txt is binary"),
        (("--data", "empty.txt"), "empty.txt holds no text"),
        (("--data", "short.txt"), "is too short to hold 5.0% out of it"),
        (("--separator", "[EOS]"), "the separator is '[EOS]'"),
        (("--optimizer", "adamw", "--restore-slots"), "holds no moments of AdaFactor"),
    ],
)
def test_bad_data_and_plans_that_do_not_fit_are_refused_in_one_line(work, words, says):
    Path("short.txt").write_text("春", "utf-8")
    Path("empty.txt").write_text("", "utf-8")
    Path("binary.txt").write_bytes(b"\x00\x01\x02" * 50)
    given = words if "--data" in words else (*words, "--data", "poems.txt")
    result = run("finetune", "--model", "model", "--out", "run", "--device", "cpu", *given)
    assert result.exit_code == 1 and says in result.stderr
    assert "Traceback" not in result.stderr and not list(Path(".").glob("run/last-*"))


def test_adapters_are_merged_into_what_is_written_with(work):
    said = done(
        "finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *QUICK, "--lora", 4, "--lr", 0.02
    )
    assert "LoRA of rank 4" in said and "--model run/merged" in said
    assert Path("run/adapters.safetensors").is_file() and not list(Path("run/best").glob("model.*"))
    before, after = hanmo.load("model").model, hanmo.load("run/merged").model
    name = "decoder.blocks.0.attention.query.weight"
    assert not torch.equal(before.get_parameter(name), after.get_parameter(name))
    assert torch.equal(before.token.weight, after.token.weight)
    found = scores("run")
    assert min(found) < found[0]
    for path in ("run", "run/best", "run/adapters.safetensors"):
        loaded = hanmo.load(path)
        assert loaded.tokenizer.vocab_size == 118
        for ours, theirs in zip(loaded.model.parameters(), after.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)  # sums in another order, by how the weights lie in memory
    assert run("write", "春眠", "--model", "run/best", "--max-chars", 5).stdout.startswith("春眠")
    rounded = run("write", "春眠", "--model", "run/best", "--weights", "int8")
    assert rounded.exit_code == 1 and "use the folder `merged` of its run" in rounded.stderr
    inspected = run("inspect", "run/best")
    assert inspected.exit_code == 1 and "holds LoRA adapters, not a complete model; use the folder" in inspected.stderr
    done("finetune", "--out", "run", "--resume", "--steps", 16)
    assert newest(Path("run"), "last").name == "last-00000016" and scores("run")[:3] == found[:3]


def test_adapters_whose_model_has_moved_say_where_it_was(work):
    done("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *BRIEF, "--lora", 4)
    shutil.move("model", "moved")
    with pytest.raises(hanmo.errors.MissingFile, match=r"adapters of the model at .*/model.*correct its path in .*"):
        hanmo.load("run/best")
    told = json.loads(Path("run/best/adapter_config.json").read_text("utf-8"))
    told["base_model_name_or_path"] = str(work / "moved")
    Path("run/best/adapter_config.json").write_text(json.dumps(told), "utf-8")
    assert hanmo.load("run/best").config.family == "gpt2_ml"
    Path("run/best/adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(hanmo.errors.CheckpointError, match="names no model under base_model_name_or_path"):
        hanmo.load("run/best")
    Path("run/best/adapter_config.json").unlink()
    with pytest.raises(hanmo.errors.MissingFile, match=r"adapter_config.json is missing, which names the model"):
        hanmo.load("run/best")


def test_adapters_of_a_masked_encoder_are_loaded_with_its_mask(work, data):
    copy(data, "bert")
    done(
        "finetune", "--model", "model", "--data", "pairs.jsonl", "--mask", "prefix", "--out", "run", *BRIEF, "--lora", 2
    )
    assert hanmo.load("run").config.main.mask == "prefix"


def test_a_runs_folder_means_its_best_weights(work):
    done("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *BRIEF)
    of_the_run, best = hanmo.load("run"), hanmo.load("run/best")
    assert of_the_run.tokenizer.vocab_size == best.tokenizer.vocab_size
    for ours, theirs in zip(of_the_run.model.parameters(), best.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert hanmo.inspect("run").found.config == best.config
    options = ("--weights", "int8", "--max-chars", 5, "--seed", 1)
    texts = [run("write", "春眠", "--model", path, *options).stdout for path in ("run", "run/best")]
    assert texts[0].startswith("春眠") and texts[0] == texts[1]
    Path("run/best").unlink()  # as on a system without symbolic links
    assert hanmo.inspect("run").found.config == best.config


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("2MiB", ()),
        ("2MiB", ("--batch", 3)),
        ("1450KiB", ()),
        ("1450KiB", ("--lora", 2)),
        ("1GiB", ("--lora", 2)),
        ("1GiB", ("--batch", 3)),
    ],
)
def test_what_is_planned_is_what_finetuning_chooses(work, memory, words):
    common = ("--model", "model", "--memory", memory, "--sequence", 48, *words)
    told = json.loads(run("plan", *common, "--json").stdout)["recommended"]
    result = run("finetune", *common, "--data", "poems.txt", "--out", "run", "--steps", 1, "--device", "cpu")
    if told is None:
        assert result.exit_code == 1 and "training needs " in result.stderr
    else:
        assert result.exit_code == 0, result.stderr
        assert json.loads(Path("run/chosen.json").read_text("utf-8"))["choice"] == told["choice"]


def test_the_result_is_saved_as_the_original_too_and_moments_come_back(work):
    with open_source("model") as source:
        items = [(name, source.read(name)) for name in source.tensors]
        slots = []
        for name, value in items:
            if value.ndim == 2:
                slots += [(f"{name}/adafactor_vr", np.full(value.shape[0], 1e-4, np.float32))]
                slots += [(f"{name}/adafactor_vc", np.full(value.shape[1], 1e-4, np.float32))]
            else:
                slots += [(f"{name}/adafactor_v", np.full(value.shape, 1e-4, np.float32))]
    write_bundle(Path("model/model.ckpt"), [*items, *slots, ("global_step", np.array(100000, np.int64))])
    done(
        "finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *QUICK, "--restore-slots",
        "--form", "tensorflow",
    )  # fmt: skip
    assert {state["step"] for state in read_state(newest(Path("run"), "last"))["optimizer"]["state"].values()} == {
        100012
    }
    ours, theirs = hanmo.load("run/best").model, hanmo.load("run/tensorflow/model.ckpt").model
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert Path("run/tensorflow/vocab.txt").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("--precision", "bfloat16", "--recompute"),
        ("--precision", "mixed"),
        ("--accumulate", 2, "--clip", 1.0),
        ("--optimizer", "adamw", "--average", 0.9, "--early-stopping", 2),
        ("--optimizer", "adafactor-bert4keras", "--schedule", "cosine"),
        ("--minutes", 0.02),
    ],
)
def test_every_way_of_training_gets_better(work, words):
    quick = QUICK[:4] + QUICK[6:] if "--minutes" in words else QUICK
    done("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *quick, "--lr", 2e-3, *words)
    found = scores("run")
    assert min(found) < 0.97 * found[0]
    dtype = torch.bfloat16 if "bfloat16" in words else torch.float32
    assert hanmo.load("run/best").model.token.weight.dtype == dtype


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bert", ("--data", "poems.txt")),
        ("bert", ("--data", "poems.txt", "--mask", "causal")),
        ("bert", ("--data", "pairs.jsonl", "--mask", "prefix", "--prompt", "春眠不觉晓")),
        ("t5_1.1", ("--data", "pairs.jsonl")),
        ("gpt", ("--data", "poems.txt", "--separator", "[SEP]")),
    ],
)
def test_families_learn_what_their_heads_predict(work, data, name, words):
    copy(data, name)
    done("finetune", "--model", "model", "--out", "run", *QUICK, "--lr", 3e-3, *words)
    found = scores("run")
    assert len(found) == 4 and found[-1] < found[0]
    assert (
        hanmo.load("run/best").config
        == hanmo.load("model", mask="".join(words[3:4]) or None if "--mask" in words else None).config
    )


def test_an_encoder_without_its_head_has_nothing_to_learn(work, data):
    copy(data, "electra")
    result = run("finetune", "--model", "model", "--out", "run", "--data", "poems.txt", *QUICK)
    assert result.exit_code == 1 and "this electra has no output onto its vocabulary" in result.stderr


def test_pretraining_begins_from_a_configuration_alone(work):
    shutil.move("model/vocab.txt", "words.txt")
    said = done(
        "pretrain", "--config", "model/config.json", "--family", "gpt2_ml", "--tokenizer", "words.txt", "--data",
        "poems.txt", "--document", "line", "--out", "run", *QUICK, "--lr", 5e-3,
    )  # fmt: skip
    assert "bits per character, held out" in said
    assert scores("run")[-1] < scores("run")[0]
    again = done(
        "pretrain", "--config", "run/best/hanmo.json", "--tokenizer", "run/best", "--data", "run/data/train.bin",
        "--out", "other", *BRIEF,
    )  # fmt: skip
    assert "--model other/best" in again
    assert hanmo.load("other/best").config == hanmo.load("run/best").config


def test_a_configuration_is_read_in_any_familys_words(work, data):
    assert config_of(data / "goldens" / "bert" / "config.json", family="bert").output == "mlm"
    bert = json.loads((data / "goldens" / "bert" / "config.json").read_text()) | {"model_type": "bert"}
    Path("config.json").write_text(json.dumps(bert))
    made = config_of(Path("config.json"), mask="causal")
    assert (made.family, made.main.mask, made.pool, made.nsp) == ("bert", "causal", "none", False)
    with pytest.raises(ConfigError, match="does not say which family it is of"):
        config_of(work / "model" / "config.json")
    with pytest.raises(ConfigError, match="family is 'gpt9'"):
        config_of(work / "model" / "config.json", family="gpt9")
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        config_of(work / "nothing.json")


def test_tensorboard_that_is_not_installed_is_named(work):
    pytest.importorskip("matplotlib")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        result = run("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *BRIEF, "--tensorboard")
        assert result.exit_code == 1 and "pip install tensorboard" in result.stderr
    else:
        done("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *BRIEF, "--tensorboard")
        assert list(Path("run/tensorboard").iterdir())


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(work):
    words = ["finetune", "--model", "model", "--data", "poems.txt", "--out", "run", "--steps", "100000", "--batch", "4"]
    started = subprocess.Popen(
        [sys.executable, "-m", "hanmo.cli", *words, "--device", "cpu"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (Path("run/log.jsonl").is_file() and '"loss"' in Path("run/log.jsonl").read_text("utf-8")):
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "saved; go on with --out run --resume" in said and newest(Path("run"), "last") is not None
    assert "curves: run/curves.png" in said and Path("run/curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing_there(work):
    begin = ("finetune", "--model", "model", "--data", "poems.txt", "--out", "run", *BRIEF)
    with locked(Path("run")):
        before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(run, *begin).result()
        assert second.exit_code == 1 and second.stderr.count("\n") == 1
        assert f"another process is writing to run (pid {os.getpid()}); wait for it" in second.stderr
        assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    done(*begin)
    assert not Path("run/.lock").exists()


@pytest.mark.parametrize(("model", "texts"), [("gone", "poems.txt"), ("model", "gone.txt")])
def test_a_run_that_is_refused_leaves_nothing_in_its_folder(work, model, texts):
    for made_before in (False, True):
        if made_before:
            Path("run").mkdir()
            Path("run/notes").touch()
        found = run("finetune", "--model", model, "--data", texts, "--out", "run", *QUICK)
        assert found.exit_code != 0 and isinstance(found.exception, HanmoError | SystemExit)
        assert [path.name for path in Path().rglob("run/*")] == ["notes"] * made_before
        assert Path("run").exists() == made_before
