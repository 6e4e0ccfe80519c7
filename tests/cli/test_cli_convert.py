"""`hanmo convert` loses nothing of a model, says what it leaves out, and never leaves anything half written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import hanmo
import hanmo.cli.screen
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.save import save
from hanmo.checkpoint.tf.bundle import Bundle
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.cli.app import app
from hanmo.families import FAMILIES
from hanmo.model import Model

KINDS = (
    "albert",
    "bert",
    "bert_headsize",
    "electra",
    "gpt",
    "gpt2",
    "gpt2_ml",
    "gpt2_ml_original",
    "gpt_nosegment",
    "gpt_shared_segment",
    "mt5_1.1",
    "nezha",
    "roformer",
    "roformer_v2",
    "t5_1.0",
    "t5_1.1",
)


def run(*args: object):
    return CliRunner().invoke(app, ["convert", *map(str, args)])


def done(*args: object):
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return result


def bits(path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with open_source(path) as source:
        return {name: (i.dtype, i.shape, source.read(name).tobytes()) for name, i in source.tensors.items()}


@pytest.fixture
def folder(data, tmp_path):
    """A checkpoint with a vocabulary beside it."""
    made = tmp_path / "source"
    shutil.copytree(data / "goldens" / "bert", made, ignore=shutil.ignore_patterns("cases*", "notes*"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(115))]
    (made / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_tensorflow_to_safetensors_and_back_is_bit_for_bit(data, tmp_path, kind):
    source = data / "goldens" / kind
    family = "roformer" if kind == "roformer" else None  # it has NEZHA's names
    out = done(source, tmp_path / "own", "--to", "safetensors", *(["--family", family] if family else []))
    assert out.stdout == f"{tmp_path / 'own'}\n"
    assert {file.name for file in (tmp_path / "own").iterdir()} == {"hanmo.json", "model.safetensors"}
    done(tmp_path / "own", tmp_path / "back", "--to", "tensorflow")
    before, after = bits(source), bits(tmp_path / "back" / "model.ckpt")
    dropped = hanmo.load(source).report.dropped
    assert after == {name: value for name, value in before.items() if name not in dropped}
    again = hanmo.load(tmp_path / "back" / "model.ckpt", family=family).config
    assert again == hanmo.load(tmp_path / "own").config


def test_every_kind_that_has_a_checkpoint_was_converted(data):
    there = {path.parent.name for path in (data / "goldens").glob("*/model.ckpt.index")}
    # The former is the same file as albert; the latter's config.json does not say what it is.
    assert there - set(KINDS) == {"albert_unshared", "bert_shared_segment"}


@pytest.mark.parametrize("kind", ["bert", "electra", "gpt2", "t5_1.1", "mt5_1.1"])
def test_hugging_face_and_back_is_bit_for_bit(data, tmp_path, kind):
    source = data / "goldens" / kind
    done(source, tmp_path / "face", "--to", "huggingface")
    assert json.loads((tmp_path / "face" / "config.json").read_text())["architectures"]
    done(tmp_path / "face", tmp_path / "back" / "x.ckpt-7", "--to", "tensorflow")
    dropped = hanmo.load(source).report.dropped
    before = {name: value for name, value in bits(source).items() if name not in dropped}
    assert bits(tmp_path / "back" / "x.ckpt-7") == before


def test_dtype_is_that_of_the_parameters(folder, tmp_path):
    for dtype in ("bfloat16", "float16", "float32"):
        done(folder, tmp_path / dtype, "--to", "safetensors", "--dtype", dtype)
        exact, model = hanmo.load(folder).model, hanmo.load(tmp_path / dtype).model
        for one, other in zip(exact.parameters(), model.parameters(), strict=True):
            assert other.dtype == getattr(torch, dtype)
            assert torch.equal(one.to(other.dtype), other)


def test_what_is_left_out_is_said_with_counts(data, tmp_path):
    with Bundle(data / "goldens" / "gpt2_ml_original" / "model.ckpt") as source:
        tensors = {name: np.array(source.read(name)) for name in source.tensors}
    for slot in ("vr", "vc"):
        tensors[f"newslm/layer00/query_layer/kernel/adafactor_{slot}"] = np.zeros(3, np.float32)
    tensors["global_step"] = np.array(7, np.int64)
    write_bundle(tmp_path / "model.ckpt", sorted(tensors.items()))
    shutil.copy(data / "goldens" / "gpt2_ml_original" / "config.json", tmp_path)
    result = done(tmp_path, tmp_path / "own", "--to", "safetensors")
    assert sorted(result.stderr.splitlines()) == [
        "hanmo: left out 1 tensor: the training step",
        "hanmo: left out 2 tensors: AdaFactor's state",
    ]


def test_tokenizer_files_go_along_unread(folder, tmp_path):
    names = ["merges.txt", "spiece.model", "tokenizer.json", "vocab.json", "vocab.txt"]
    for name in names:
        (folder / name).write_bytes(name.encode())
    (folder / "notes.txt").touch()
    for form in ("safetensors", "tensorflow", "huggingface"):
        done(folder, tmp_path / form, "--to", form)
        there = {file.name for file in (tmp_path / form).iterdir()}
        assert {name for name in there if not name.startswith(("model.", "config", "hanmo"))} == set(names)
        assert all((tmp_path / form / name).read_bytes() == name.encode() for name in names)


def test_tensorflow_goes_into_a_folder_or_under_a_prefix(folder, tmp_path):
    assert done(folder, tmp_path / "a", "--to", "tensorflow").stdout == f"{tmp_path / 'a' / 'model.ckpt'}\n"
    assert done(folder, tmp_path / "b" / "bert.ckpt-9", "--to", "tensorflow").stdout.endswith("bert.ckpt-9\n")
    assert (tmp_path / "b" / "bert.ckpt-9.index").is_file() and (tmp_path / "b" / "vocab.txt").is_file()
    (tmp_path / "c.ckpt").mkdir()
    assert done(folder, tmp_path / "c.ckpt", "--to", "tensorflow").stdout.endswith("c.ckpt/model.ckpt\n")


def test_nothing_is_overwritten_without_force(folder, tmp_path):
    for form in ("safetensors", "tensorflow"):
        (tmp_path / form).mkdir()
        for name in ("model.safetensors", "model.ckpt.index"):
            (tmp_path / form / name).write_text("precious")
        result = run(folder, tmp_path / form, "--to", form)
        assert result.exit_code == 1
        assert str(tmp_path / form) in result.stderr and "replace it with --force" in result.stderr
        assert (tmp_path / form / "model.safetensors").read_text() == "precious"
        assert (tmp_path / form / "model.ckpt.index").read_text() == "precious"
        done(folder, tmp_path / form, "--to", form, "--force")
        assert hanmo.load(done(folder, tmp_path / form, "--to", form, "--force").stdout.strip()).config.family == "bert"


def test_another_config_and_family_can_be_given(data, tmp_path):
    source = data / "goldens" / "roformer"
    shutil.copytree(source, tmp_path / "bare", ignore=shutil.ignore_patterns("config.json", "cases*"))
    result = run(tmp_path / "bare", tmp_path / "out", "--to", "safetensors", "--family", "roformer")
    assert result.exit_code == 1 and "no config.json beside" in result.stderr and "hanmo inspect" in result.stderr
    done(
        tmp_path / "bare",
        tmp_path / "out",
        "--to",
        "safetensors",
        "--family",
        "roformer",
        "--config",
        source / "config.json",
    )
    assert hanmo.load(tmp_path / "out").config.family == "roformer"


@pytest.mark.parametrize("name", ["out.safetensors", "out.bin", "out/model.ckpt.index"])
def test_a_target_that_looks_like_one_file_is_wrong_usage(folder, tmp_path, name):
    result = run(folder, tmp_path / name, "--to", "tensorflow")
    assert result.exit_code == 2 and "give a folder" in " ".join(result.stderr.split())


def test_a_form_that_the_family_has_not_is_one_line(tmp_path):
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = FAMILIES["roberta"].huggingface.config(sizes | {"intermediate_size": 8, "max_position_embeddings": 8})
    save(Model(config).initialize(0), tmp_path / "model")
    result = run(tmp_path / "model", tmp_path / "out", "--to", "tensorflow")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "hanmo: roberta has no form 'tensorflow'; its forms are safetensors, huggingface\n"


@pytest.mark.parametrize("form", ["safetensors", "tensorflow", "huggingface"])
def test_a_target_that_cannot_be_written_is_one_line(folder, tmp_path, form):
    (tmp_path / "file").touch()
    result = run(folder, tmp_path / "file" / "out", "--to", form)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("hanmo: ") and "file" in result.stderr


def everything(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("form", ["safetensors", "tensorflow", "huggingface"])
@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_nothing_behind_and_what_was_there(folder, tmp_path, monkeypatch, form, force):
    if force:
        done(folder, tmp_path / "out", "--to", form)
    pieces = 0

    @contextmanager
    def full(title):
        def fail(done, total):
            nonlocal pieces
            pieces += 1
            if pieces == 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out"))

        yield fail

    monkeypatch.setattr(hanmo.cli.screen, "progress", full)
    before = everything(tmp_path)
    result = run(folder, tmp_path / "out", "--to", form, *["--force"] * force)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"hanmo: No space left on device: {tmp_path / 'out'}\n"
    assert pieces == 5
    assert everything(tmp_path) == before
    if force:
        assert hanmo.load(tmp_path / "out").config.family == "bert"


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_limit_of_the_system_on_files_leaves_nothing_behind(folder, tmp_path):
    import resource

    before = everything(tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "hanmo.cli", "convert", str(folder), str(tmp_path / "out"), "--to", "safetensors"],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"hanmo: File too large: {tmp_path / 'out' / 'model.safetensors'}\n"
    assert everything(tmp_path) == before


# The whole command, but for a bar that tells of each piece and takes its time.
SLOWLY = """
import sys, time
from contextlib import contextmanager
import hanmo.cli, hanmo.cli.screen

@contextmanager
def slow(title):
    def tell(done, total):
        print("piece", file=sys.stderr, flush=True)
        time.sleep(0.5)
    yield tell

hanmo.cli.screen.progress = slow
hanmo.cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("form", [pytest.param("safetensors", marks=pytest.mark.slow), "tensorflow"])
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_ended_in_the_middle_leaves_nothing_half_written(folder, tmp_path, form, number, code):
    before = everything(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "convert", str(folder), str(tmp_path / "out"), "--to", form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert [process.stderr.readline() for _ in range(3)] == ["piece\n"] * 3
    assert everything(tmp_path) != before  # it is in the middle
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    left = everything(tmp_path) - before
    if number == signal.SIGKILL:  # nobody can take away what is under a passing name, but the name says so
        left -= {"out"}
        assert left and all("partial" in name for name in left)
        done(folder, tmp_path / "out", "--to", form)
        assert not any("partial" in name for name in everything(tmp_path))
    else:
        assert left == set()


def test_force_replaces_checkpoints_only_and_never_what_is_read(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    result = run(folder, tmp_path / "mine", "--to", "safetensors", "--force")
    assert result.exit_code == 1 and "holds thesis.txt, which is no part of a checkpoint" in result.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    before = bits(folder / "model.ckpt")
    result = run(folder, folder, "--to", "safetensors", "--force")
    assert result.exit_code == 1 and "is what is read; give another place to write to" in result.stderr
    assert bits(folder / "model.ckpt") == before
    done(folder, tmp_path / "out", "--to", "safetensors")
    done(folder, tmp_path / "out", "--to", "huggingface", "--force")
    assert (tmp_path / "out" / "config.json").is_file() and not (tmp_path / "out" / "hanmo.json").exists()
