"""`hanmo bench`: the table or one JSON object on stdout, everything else on stderr, one line for every mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hanmo.bench.speed
from hanmo.cli.app import app
from hanmo.errors import CheckpointError
from hanmo.pipeline import SMALL

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
MODEL = str(GOLDENS / "gpt2_ml" / "model.ckpt")


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory):
    """Keep converted weights in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("kept")))
        yield


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], prog_name="hanmo")


def rows(text):
    """Give the words of every line that has some."""
    return [line.split() for line in text.splitlines() if line.strip(" ─")]


@pytest.mark.slow
def test_a_run_prints_json_draws_its_picture_and_the_second_needs_no_torch(tmp_path):
    run("--model", MODEL, "--quick", "--threads", "1")
    script = (
        "import sys; from hanmo.cli.app import app\n"
        "try: app(sys.argv[1:], prog_name='hanmo')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    arguments = ["bench", "--model", MODEL, "--quick", "--json", "--picture", str(tmp_path / "speed.png")]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert result.stderr == f"hanmo: drew {tmp_path / 'speed.png'}\nFalse\n"
    found = json.loads(result.stdout)
    assert set(found) == {"model", "machine", "start", "lengths", "batches", "bandwidth", "writing"}
    assert found["start"]["conversion_seconds"] is None and found["bandwidth"]["share"] > 0
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_the_table_shows_what_was_measured(monkeypatch):
    result = run("--model", MODEL, "--quick", "--json", "--threads", "1")
    found = json.loads(result.stdout)
    found["start"]["gpu_peak_bytes"], found["writing"] = 2.5e9, {"characters_per_second": 18.25}
    found["start"]["anonymous_bytes"], found["start"]["anonymous_per_weights"] = 1.5e9, 1.08
    found["start"]["resident_bytes"] = None
    found["bandwidth"]["share"] = 0.715
    found["lengths"]["rows"][0] |= {"first_token_seconds": 0.1234, "token_seconds": 0.0525, "tokens_per_second": 1234.5}
    asked = []
    monkeypatch.setattr(
        hanmo.bench.speed, "measure", lambda subject, **options: asked.append((subject, options)) or found
    )
    result = run("--model", MODEL, "--weights", "int4", "--threads", "2")
    assert result.exit_code == 0 and result.stderr == ""
    assert (asked[0][0].weights, asked[0][0].threads, asked[0][1]["quick"]) == ("int4", 2, False)
    text, lines = result.stdout, rows(result.stdout)
    assert found["machine"]["processor"] in text and f"python {found['machine']['versions']['python']}" in text
    for line in (
        "share of the read speed 71.5%",
        "writing 18.2 characters/s",
        "memory after it, anonymous 1.50 GB (1.08 × the weights)",
        "memory after it, resident unknown on this system",
        "memory of the GPU, peak 2.50 GB",
    ):
        assert line.split() in lines
    assert [row[0] for row in lines if len(row) == 5 and row[0].isdigit()] == ["16", "34"]
    first = next(row for row in lines if row[0] == "16")
    assert (first[1], first[3], first[4]) == ("123", "52.5", "1,234")
    assert [row[0] for row in lines if len(row) == 4 and row[0].isdigit()] == ["1", "8", "32"]
    assert run("--model", MODEL, "--device", "cuda").exit_code == 0 and asked[1][0].weights == "bfloat16"


def test_quality_is_a_table_or_json(tmp_path):
    words = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")] + [chr(0x4E00 + i) for i in range(115)]
    for path in (GOLDENS / "gpt2_ml").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "vocab.txt").write_text("\n".join(words), "utf-8")
    (tmp_path / "text.txt").write_text("一丁丂七丄丅丆万丈三上下" * 9, "utf-8")
    asked = ("--model", tmp_path, "--quality", tmp_path / "text.txt")
    found = json.loads(run(*asked, "--json").stdout)
    expected = [
        [row["weights"], f"{row['bits_per_character']:.4f}", f"{row['to_float32']:.4f}"] for row in found["rows"]
    ]
    assert [row[0] for row in expected] == ["float32", "bfloat16", "int8", "int4"]
    result = run(*asked, "--documents", "1")
    assert [row for row in rows(result.stdout) if len(row) == 3 and row[0] != "weights"] == expected
    assert "107 characters" in result.stdout and result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nothing-here"), "no checkpoint at nothing-here"),
        (("--model", GOLDENS / "bert"), "is a plain encoder (bert), and what is measured here is generation"),
        (("--model", MODEL, "--picture", "speed.gif"), "expected a name that ends in .png or .svg"),
        (("--model", MODEL, "--device", "cuda", "--weights", "int4"), "these run on a CPU"),
        (("--model", MODEL, "--device", "nowhere"), "--device is 'nowhere'; expected cpu, cuda"),
        (("--model", MODEL, "--quality", "nothing.txt"), "there is no vocabulary beside"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("hanmo: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments", [("--documents", "3"), ("--quality", "a.txt", "--weights", "int8"), ("--quality", "a.txt", "--quick")]
)
def test_options_that_do_not_belong_together_are_wrong_usage(arguments):
    assert run("--model", MODEL, *arguments).exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_it_cleanly():
    command = [sys.executable, "-m", "hanmo.cli", "bench", "--model", MODEL]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the processes that it started too
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "hanmo: interrupted\n")


def test_without_a_model_the_small_one_is_measured(monkeypatch):
    seen = []

    def measure(subject, **options):
        seen.append(subject)
        raise CheckpointError("seen")

    monkeypatch.setattr(hanmo.bench.speed, "measure", measure)
    assert run("--quick").stderr == "hanmo: seen\n"
    assert [subject.path for subject in seen] == [SMALL]
