"""`hanmo pack` and `hanmo vocab` as a person types them."""

import json
import os
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hanmo.cli.app import app
from hanmo.tokenizers import Lossless
from hanmo.tokenizers.byte_bpe import _alphabet
from hanmo.training.data.pack import TokenEncoder
from hanmo.training.data.packed import PackedFile

ALPHABET = string.ascii_letters + string.digits
LOSSLESS = [
    "[PAD]",
    "[UNK]",
    "[EOS]",
    "[NL]",
    "[SP]",
    *ALPHABET,
    *("##" + letter for letter in ALPHABET),
    *"天地玄黄，",
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄黄，"]
# [CLS] 天 地 [UNK] [SEP] and padding, with mask_ids, written by TensorFlow 2.15.1.
RECORD = (
    "3700000000000000e7e8ca590a350a180a086d61736b5f696473120c1a0a0a0800000500000000000a190a09746f6b656e5f69647312"
    "0c1a0a0a0802050601030000005a49c50a"
)
PROGRAM = """
import sys
from hanmo.cli.app import app
try:
    app(sys.argv[1:], prog_name="hanmo")
finally:
    if sys.platform == "linux":
        status = open("/proc/self/status").read().split()
        print("peak KiB", status[status.index("VmHWM:") + 1])
"""


def run(*args: object):
    return CliRunner().invoke(app, [*map(str, args)])


def vocabulary(path: Path, tokens: list[str]) -> Path:
    path.write_text("".join(token + "\n" for token in tokens), "utf-8")
    return path


def test_texts_of_all_forms_are_packed_and_summed_up(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_bytes("天地\n".encode("gb18030") * 3)
    (texts / "b.jsonl").write_text('{"body": "玄黄"}\n', "utf-8")
    (texts / "c.csv").write_text("body,source\n天鱻,诗\n", "utf-8")
    words = vocabulary(tmp_path / "vocab.txt", LOSSLESS)
    told = run("pack", texts, "--out", tmp_path / "d", "--tokenizer", words, "--document", "line", "--text-key", "body")
    assert told.exit_code == 0, told.stderr
    assert told.stdout == (
        f"{tmp_path / 'd'}.bin: 5 documents, 10 characters, 15 tokens\n"
        "after each document: [EOS]\n"
        "unknown: 6.67% of the tokens; 1 characters, the most: 鱻\n"
    )
    assert told.stderr == (
        "hanmo: 6.7% of the tokens are unknown, most of them 鱻; is this the vocabulary for these texts?\n"
    )
    tokenizer = Lossless(words)
    file = PackedFile(tmp_path / "d", vocabulary_sha256=TokenEncoder(tokenizer).sha256)
    assert tokenizer.decode(file.ids, special=True) == "[EOS]" + "天地[EOS]" * 3 + "玄黄[EOS]天[UNK][EOS]"
    assert file.sources == ["a", "b", "诗"]


def test_the_vocabulary_beside_a_checkpoint_is_taken(tmp_path: Path, data: Path) -> None:
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        (tmp_path / name).symlink_to(data / "goldens" / "bert" / name)
    vocabulary(tmp_path / "vocab.txt", BERT)
    (tmp_path / "a.txt").write_text("天地", "utf-8")
    for options, ids in (([], [5, 6]), (["--separator", "[SEP]"], [3, 5, 6, 3])):
        command = ["pack", tmp_path / "a.txt", "--out", tmp_path / "d", "--model", tmp_path / "model.ckpt", "--force"]
        told = run(*command, *options)
        assert told.exit_code == 0, told.stderr
        assert f"after each document: {'[SEP]' if options else 'no mark'}\n" in told.stdout
        assert PackedFile(tmp_path / "d").ids.tolist() == ids


def test_ids_of_bert4keras_are_packed_and_summed_up(tmp_path: Path) -> None:
    vocabulary(tmp_path / "vocab.txt", BERT)
    (tmp_path / "a.tfrecord").write_bytes(bytes.fromhex(RECORD))
    told = run("pack", tmp_path / "a.tfrecord", "--out", tmp_path / "d", "--tokenizer", tmp_path / "vocab.txt")
    assert told.exit_code == 0, told.stderr
    assert told.stdout == (
        f"{tmp_path / 'd'}.bin: 1 document, 3 characters, 3 tokens\n"
        "after each document: no mark\n"
        "unknown: 33.33% of the tokens\n"
    )
    assert PackedFile(tmp_path / "d").ids.tolist() == [5, 6, 1]


def test_an_id_zero_that_is_a_word_is_mentioned(tmp_path: Path) -> None:
    ids = {token: number for number, token in enumerate([*_alphabet(), "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "a.txt").write_text("a!", "utf-8")
    told = run("pack", tmp_path / "a.txt", "--out", tmp_path / "d", "--tokenizer", tmp_path)
    assert told.stderr == "hanmo: id 0 is '!' in this vocabulary; training never has it predicted\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--tokenizer", "vocab.txt"], 1, "hanmo: a.txt line 262145: bytes ff ff 0a are not utf-8"),
        (["--tokenizer", "vocab.txt", "--separator", "[X]"], 1, "hanmo: the separator is '[X]', which is none of"),
        (["--tokenizer", "gone.txt"], 1, "hanmo: there is no tokenizer at gone.txt"),
        (["--model", "gone/model.ckpt"], 1, "gone/model.ckpt"),
        ([], 2, "give --tokenizer with a vocabulary, or --model"),
        (["--tokenizer", "vocab.txt", "--model", "m"], 2, "give --tokenizer with a vocabulary, or --model"),
    ],
)
def test_what_cannot_be_packed_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    vocabulary(tmp_path / "vocab.txt", LOSSLESS)
    (tmp_path / "a.txt").write_bytes("天地\n".encode() * (1 << 18) + b"\xff\xff\n")
    told = run("pack", "a.txt", "--out", "d", *options)
    assert told.exit_code == code
    assert message in " ".join(told.stderr.replace("│", " ").split())
    assert code == 2 or told.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "vocab.txt"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("form", "limit"), [("txt", 160), ("jsonl", 450)])
def test_one_line_of_100_mb_is_packed_in_bounded_memory(tmp_path: Path, form: str, limit: int) -> None:
    vocabulary(tmp_path / "vocab.txt", LOSSLESS)
    path = tmp_path / f"long.{form}"
    line = "天地玄黄 word，" * 40_000  # 800,000 bytes
    with path.open("w", encoding="utf-8") as file:
        file.write('{"text": "' if form == "jsonl" else "")
        for _ in range(126):
            file.write(line)
        file.write('"}\n' if form == "jsonl" else "")
    assert path.stat().st_size > 100_000_000
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "pack", path, "--out", tmp_path / "d"]
    command += ["--tokenizer", tmp_path / "vocab.txt", "--processes", "1"]
    told = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    assert "1 document, 50,400,000 characters, 50,400,001 tokens" in told.stdout
    assert int(told.stdout.split()[-1]) < limit << 10, told.stdout
    ids = PackedFile(tmp_path / "d").ids
    once = Lossless(LOSSLESS).encode(line).ids
    assert ids[1 : 1 + len(once)].tolist() == once == ids[-1 - len(once) : -1].tolist()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as a signal to a group of processes")
def test_ctrl_c_leaves_the_old_files_and_nothing_half_written(tmp_path: Path) -> None:
    vocabulary(tmp_path / "vocab.txt", LOSSLESS)
    (tmp_path / "a.txt").write_text("天", "utf-8")
    assert (
        run("pack", tmp_path / "a.txt", "--out", tmp_path / "d", "--tokenizer", tmp_path / "vocab.txt").exit_code == 0
    )
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.stem == "d"}
    (tmp_path / "b.txt").write_text("天地玄黄 word，" * 9_000_000, "utf-8")
    command = [sys.executable, "-m", "hanmo.cli", "pack", tmp_path / "b.txt", "--out", tmp_path / "d"]
    command += ["--tokenizer", tmp_path / "vocab.txt", "--processes", "2", "--force"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob(".d.bin.*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "hanmo: interrupted\n")
    assert len(before) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if "d." in path.name} == before


def test_a_vocabulary_is_made_and_packs_its_own_corpus(tmp_path: Path) -> None:
    text = "天地玄黄，宇宙洪荒。\nPython 的 Python\n" * 5
    (tmp_path / "a.txt").write_text(text, "utf-8")
    words = tmp_path / "new" / "vocab.txt"
    told = run("vocab", tmp_path / "a.txt", "--out", words, "--size", "300", "--pieces", "4", "--no-common")
    assert told.exit_code == 0, told.stderr
    made = Lossless(words)
    assert (
        told.stdout.startswith(f"{words}: {made.vocab_size} tokens, of them ") and "which make 100.000%" in told.stdout
    )
    told = run("pack", tmp_path / "a.txt", "--out", tmp_path / "d", "--tokenizer", words)
    assert "unknown" not in told.stdout
    assert made.decode(PackedFile(tmp_path / "d").ids) == text.removesuffix("\n")
    told = run("vocab", tmp_path / "a.txt", "--out", words, "--size", "300", "--force")
    assert told.exit_code == 1 and "300 tokens leave" in told.stderr and "raise size" in told.stderr
    assert Lossless(words).vocab_size == made.vocab_size


def test_what_is_there_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("天地玄黄" * 9, "utf-8")
    vocab = ["vocab", tmp_path / "a.txt", "--out", tmp_path / "vocab.txt", "--no-common", "--pieces", "0"]
    pack = ["pack", tmp_path / "a.txt", "--out", tmp_path / "d", "--tokenizer", tmp_path / "vocab.txt"]
    for command, left in ((vocab, "vocab.txt"), (pack, "d.documents")):
        assert run(*command).exit_code == 0
        for path in tmp_path.glob("d.[!d]*"):
            path.unlink()
        (tmp_path / left).write_bytes(b"precious")
        told = run(*command)
        assert (told.exit_code, told.stdout) == (1, "")
        assert told.stderr == f"hanmo: {tmp_path / left} exists; give another --out, or --force to replace it\n"
        assert (tmp_path / left).read_bytes() == b"precious"
        assert run(*command, "--force").exit_code == 0
        assert (tmp_path / left).read_bytes() != b"precious"
