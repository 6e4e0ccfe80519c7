"""`hanmo write --file`: a process that is stopped says where and the next one goes on; messages are one line."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hanmo.cli import write as module
from hanmo.cli.app import app

sys.path.append(str(Path(__file__).parents[1] / "batch"))

from toy_writer import WORDS, ToyWriter

# The command as it is, but for its model: it starts in no time, and each batch takes a while.
CHILD = """
import sys
sys.path[:0] = [{folder!r}]
from toy_writer import ToyWriter
import hanmo.cli.write
hanmo.cli.write._open = lambda *arguments: ToyWriter(pause={pause})
from hanmo.cli import main
main()
"""


@pytest.fixture
def files(tmp_path):
    """Give the options for a file of prompts and its results, with a checkpoint that stands for the toy."""
    (tmp_path / "toy.safetensors").write_bytes(b"\0")
    chance = random.Random(1)
    lines = [
        json.dumps({"prompt": "".join(chance.choices(WORDS[5:], k=chance.randint(1, 60)))}, ensure_ascii=False)
        if number % 10
        else '{"prompt": 5}'
        for number in range(1, 121)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")

    def options(out="results.jsonl", *more):
        names = {"--model": "toy.safetensors", "--file": "prompts.jsonl", "--out": out}
        return ["write", *(str(part) for name, value in names.items() for part in (name, tmp_path / value)), *more]

    return options


@pytest.fixture
def toy(monkeypatch):
    writer = ToyWriter()
    monkeypatch.setattr(module, "_open", lambda *arguments: writer)
    return writer


def run(arguments):
    return CliRunner().invoke(app, arguments, prog_name="hanmo")


def start(arguments, pause=0.02):
    folder = str(Path(__file__).parents[1] / "batch")
    command = [sys.executable, "-c", CHILD.format(folder=folder, pause=pause), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_says_where_it_stopped_and_the_next_run_where_it_goes_on(files, tmp_path, toy):
    process = start(files("results.jsonl", "--max-chars", "9"), pause=0.2)
    out = tmp_path / "results.jsonl"
    while not (out.exists() and out.stat().st_size):
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout == ""
    first, second = stderr.splitlines()
    row = first.removeprefix("hanmo: stopped after row ").removesuffix("; run the same command to continue")
    assert second == "hanmo: interrupted" and 0 < int(row) < 120
    result = run(files("results.jsonl", "--max-chars", "9"))
    going, finished = result.stderr.splitlines()
    assert result.exit_code == 0 and result.stdout == ""
    assert going.startswith(f"hanmo: resuming after row {row}: ")
    errors = tmp_path / "results.errors.jsonl"
    told = f"108 rows are in {out}, 12 failed and are in {errors}"
    assert finished == f"hanmo: finished: {told}"
    toy.toy.prefilled.clear()
    assert run(files("results.jsonl", "--max-chars", "9")).stderr == f"hanmo: nothing left to do: {told}\n"
    assert toy.toy.prefilled == []


def test_other_settings_are_one_line(files, toy):
    assert run(files("results.jsonl", "--max-chars", "9")).exit_code == 0
    result = run(files("results.jsonl", "--max-chars", "8", "-n", "2"))
    assert_one_line(result, "started with other settings: --max-chars was 9 and is 8; -n was 1 and is 2; give the same")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "0"], "--batch is 0; expected a whole number of 1 or more"),
        (["-n", "0"], "-n is 0; expected a whole number of 1 or more"),
        (["--top-k", "0"], "--top-k is 0"),
        (["--beams", "2", "--seed", "3"], "leave seed and the settings of drawing out"),
        (["--beams", "2", "-n", "3"], "-n is 3, --beams is 2"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_and_leaves_no_file(files, toy, tmp_path, more, message):
    before = sorted(tmp_path.iterdir())
    assert_one_line(run(files("results.jsonl", *more)), message)
    assert sorted(tmp_path.iterdir()) == before


def test_a_search_writes_for_a_file_too(files, toy, tmp_path):
    assert run(files("results.jsonl", "--beams", "2", "-n", "2", "--max-chars", "4", "--min-chars", "0")).exit_code == 0
    first = json.loads((tmp_path / "results.jsonl").read_text("utf-8").split("\n")[0])
    assert first["texts"] == toy.write(first["prompt"], beams=2, n=2, max_chars=4, min_chars=0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["write", "--out", "x.jsonl"],
        ["write", "今天", "--batch", "3"],
        ["write", "--file", "x.jsonl"],
        ["write", "今天", "--file", "x.jsonl", "--out", "y.jsonl"],
        ["write", "--json", "--file", "x.jsonl", "--out", "y.jsonl"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments):
    result = run(arguments)
    assert result.exit_code == 2 and "file" in result.stderr


def test_files_that_are_not_there_are_one_line(files, tmp_path):
    assert_one_line(run(["write", "--file", "x", "--out", "y"]), "there is no file of prompts at x")
    (tmp_path / "prompts.jsonl").unlink()
    assert_one_line(run(files()), "there is no file of prompts at ")
    (tmp_path / "toy.safetensors").unlink()
    assert_one_line(run(files()), "no checkpoint at ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_one_line(files, toy, tmp_path):
    (tmp_path / "results.jsonl").symlink_to("/dev/full")
    assert_one_line(run(files()), f"No space left on device: {tmp_path / 'results.jsonl'}")


def test_too_many_texts_at_once_are_one_line(files, toy, tmp_path, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        """Named as torch's."""

    for error in (OutOfMemoryError, MemoryError):

        def prefill(prompts, *, room, error=error):
            raise error("CUDA out of memory")

        monkeypatch.setattr(toy.toy, "prefill", prefill)
        result = run(files("results.jsonl", "--batch", "4"))
        assert_one_line(
            result, "4 texts at once do not fit into memory; run the same command with a --batch smaller than 4"
        )


def assert_one_line(result, message):
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("hanmo: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_run_in_which_every_row_fails_ends_with_exit_code_1(files, toy, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": 5}\n{"text": "今"}\n', "utf-8")
    for told in ("finished", "nothing left to do"):
        result = run(files())
        assert_one_line(result, f"{told}: 0 rows are in {tmp_path / 'results.jsonl'}, 2 failed and are in")
    with (tmp_path / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "今"}\n')
    assert run(files("other.jsonl", "--max-chars", "9")).exit_code == 0
