"""Errors are one line and an exit code, results alone go to standard output, and starting is cheap."""

import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import hanmo.checkpoint.inspect
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.cli.app import app
from hanmo.cli.screen import on_screen, printable
from hanmo.errors import HanmoError

HANMO = [sys.executable, "-m", "hanmo.cli"]
ESCAPE = "\x1b["


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def spawn(*args: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HANMO, *map(str, args)], capture_output=True, text=True, timeout=60, **options)


def test_the_version_is_that_of_the_package():
    assert run("--version").stdout == f"hanmo {hanmo.__version__}\n"


@pytest.mark.parametrize("module", ["hanmo", "hanmo.cli"])
def test_the_package_runs_as_a_module(monkeypatch, capsys, module):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    monkeypatch.setattr("sys.argv", ["hanmo", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out == f"hanmo {hanmo.__version__}\n"


def test_help_names_every_command_and_shows_examples():
    told = run("--help").stdout
    assert "inspect" in told and "convert" in told
    for command in ("inspect", "convert"):
        page = run(command, "-h").stdout
        assert "For example" in page and f"hanmo {command} " in page


def test_completion_is_offered():
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize("args", [["inspect"], ["inspet", "x"], ["inspect", "x", "--nope"], ["convert", "a", "b"]])
def test_wrong_usage_exits_2(args):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == "" and "Usage" in result.stderr


def test_an_error_is_one_line_on_stderr_and_exits_1(tmp_path):
    result = spawn("inspect", tmp_path / "nothing")
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(r"hanmo: no checkpoint at .*nothing: [^\n]*\n", result.stderr)


def test_debug_shows_the_traceback(tmp_path):
    result = spawn("--debug", "inspect", tmp_path / "nothing")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" in result.stderr and "MissingFile: no checkpoint at" in result.stderr


def failing(error: BaseException):
    def fail(*args, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (HanmoError("two\nlines  of it"), 1, "hanmo: two lines of it\n"),
        (HanmoError(), 1, "hanmo: HanmoError\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 1, "hanmo: No space left on device: out/x\n"),
        (PermissionError(errno.EACCES, "Permission denied"), 1, "hanmo: Permission denied\n"),
        (OSError("something odd"), 1, "hanmo: something odd\n"),
        (KeyboardInterrupt(), 130, "hanmo: interrupted\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_each_kind_of_failure_has_its_code_and_line(monkeypatch, tmp_path, error, code, line):
    monkeypatch.setattr(hanmo.checkpoint.inspect, "inspect", failing(error))
    result = run("inspect", tmp_path)
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_a_defect_of_ours_is_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setattr(hanmo.checkpoint.inspect, "inspect", failing(ZeroDivisionError("ours")))
    result = run("inspect", tmp_path)
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line(data):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*HANMO, "inspect", data / "goldens" / "bert"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert result.returncode == 1
    assert result.stderr == "hanmo: No space left on device\n"


def test_a_reader_that_leaves_early_is_no_error(data):
    process = subprocess.Popen(
        [*HANMO, "inspect", data / "goldens" / "bert"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_signals_end_it_at_once_without_a_traceback(tmp_path, number, code):
    # Reading a pipe that is open and never fed takes as long as the signal does.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "script.py").write_text(f"open({str(tmp_path / 'pipe')!r}).read()\n", "utf-8")
    command = [*HANMO, "run", tmp_path / "script.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    held, deadline = open_once_read(tmp_path / "pipe"), time.monotonic() + 60
    while True:  # a signal may fall into a finalizer, which swallows it; people press Ctrl-C again
        process.send_signal(number)
        try:
            out, err = process.communicate(timeout=10)
            break
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, "it does not end"
    os.close(held)
    assert process.returncode == code
    assert out == "" and "Traceback" not in err


def open_once_read(pipe: Path) -> int:
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no reader yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_messages_survive_a_terminal_that_knows_only_ascii(tmp_path):
    result = spawn("inspect", tmp_path / "翰墨", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert result.returncode == 1
    assert r"no checkpoint at" in result.stderr and r"\u7ff0\u58a8" in result.stderr


def test_output_that_is_piped_has_no_colours(data):
    assert ESCAPE not in spawn("inspect", data / "goldens" / "bert").stdout


def test_inspect_never_imports_torch(data):
    program = """
import sys
from hanmo.cli.app import app
for path in sys.argv[1:]:
    try:
        app(["inspect", path, "--json"], prog_name="hanmo")
    except SystemExit as end:
        assert not end.code, end.code
    print("torch" in sys.modules, "transformers" in sys.modules, file=sys.stderr)
"""
    folders = [str(data / "goldens" / kind) for kind in ("bert", "gpt2_ml_original", "t5_1.1")]
    result = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, timeout=60)
    assert result.stderr == "False False\n" * 3
    assert result.stdout.count('"family"') == 3


def test_the_entry_point_is_installed():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="hanmo")
    assert entry.load() is hanmo.cli.main


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x07\x9b2J", "a\\u001b[31mb\\u0007\\u009b2J"),
        ("\u202egnp.exe\r", "\\u202egnp.exe\\u000d"),
        ("词\t，\n", "词\t，\n"),
    ],
)
def test_control_characters_are_escaped_as_json_does(text, shown):
    assert printable(text) == shown
    assert json.loads(printable(json.dumps([text], ensure_ascii=False))) == [text]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_names_in_a_file_do_not_reach_the_terminal_raw(tmp_path, data, options):
    name, shown = "odd\x1b]0;owned\x07\x9b2J", "odd\\u001b]0;owned\\u0007\\u009b2J"
    with open_source(data / "goldens" / "bert") as source:
        tensors = {each: source.read(each) for each in source.tensors} | {name: np.zeros(3, np.float32)}
    write_safetensors(tmp_path / "model.safetensors", tensors.items())
    shutil.copy(data / "goldens" / "bert" / "config.json", tmp_path)
    told = run("inspect", tmp_path, *options)
    assert told.exit_code == 0 and shown in told.stdout
    error = run("convert", tmp_path, tmp_path / "out", "--to", "safetensors")
    assert error.exit_code == 1 and shown in error.stderr
    assert not set(told.output + error.output) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("write", "shorten it, or cut it with keep_last=True", "shorten it, or cut it with --keep-last"),
        ("write", "read it with parse_special=False", "read it with --no-parse-special"),
        ("write", "put it there, or give tokenizer=PATH", "put it there, or give --tokenizer PATH"),
        ("write", "load a BERT with mask='causal'", "load a BERT with --mask causal"),
        ("write", "n is 3, top_k is 5; leave seed out", "-n is 3, --top-k is 5; leave --seed out"),
        ("convert", "replace it with overwrite=True", "replace it with --force"),
        ("inspect", "give tokenizer=PATH", "give tokenizer=PATH"),
        ("write", "the model is there: a/top_k.txt, n/seed=3", "the model is there: a/top_k.txt, n/seed=3"),
        ("write", "the seed, a stop and the device of this model", "the seed, a stop and the device of this model"),
    ],
)
def test_errors_speak_of_options_as_the_command_line_spells_them(monkeypatch, command, message, shown):
    arguments = {"write": ["x"], "convert": ["a", "b", "--to", "safetensors"], "inspect": ["x"]}[command]
    for target in ("hanmo.pipeline.open_writer", "hanmo.loading.load_network", "hanmo.checkpoint.open.open_source"):
        monkeypatch.setattr(target, failing(HanmoError(message)))
    monkeypatch.setattr(hanmo.checkpoint.inspect, "inspect", failing(HanmoError(message)))
    assert run(command, *arguments).stderr == f"hanmo: {shown}\n"


@pytest.mark.parametrize(("terminal", "shown"), [(True, "一\\u001b[2J\n"), (False, "一\x1b[2J\n")])
def test_what_a_model_writes_cannot_steer_a_terminal(monkeypatch, terminal, shown):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert on_screen("一\x1b[2J\n") == shown
