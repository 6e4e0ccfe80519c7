"""`hanmo serve` as a person starts it, and what it refuses to start."""

import asyncio
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from test_model_pipeline import small
from typer.testing import CliRunner

import hanmo
from hanmo.cli.app import app
from hanmo.cli.options import OPENING
from hanmo.cli.serve import _shared
from hanmo.generate.scheduler import Scheduler
from hanmo.server.models import _cache_ids
from hanmo.server.run import Server

GOLDEN = str(Path(__file__).resolve().parents[1] / "data" / "goldens" / "gpt2_ml_original")
HANMO = [sys.executable, "-m", "hanmo.cli", "serve"]


def run(*arguments):
    return CliRunner().invoke(app, ["serve", *arguments], prog_name="hanmo")


def first_line(process):
    """Return what a server says first, but for kernels that it compiles."""
    return next((line for line in process.stderr if "compiling kernels" not in line), "")


def test_it_says_where_it_serves_answers_and_ends_by_sigterm():
    with subprocess.Popen([*HANMO, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        line = first_line(process)
        found = re.fullmatch(r"hanmo: serving on (http://127\.0\.0\.1:\d+) after \d+\.\d s; Ctrl-C ends\n", line)
        assert found, line
        answer = httpx.post(f"{found[1]}/v1/completions", json={"prompt": "床前明月光，", "max_tokens": 5}, timeout=60)
        assert len(answer.json()["choices"][0]["text"]) == 5 and answer.json()["model"] == "hanmo-small"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "hanmo: all requests have ended\n" and process.wait(30) == 0


def test_a_bert_is_served_as_a_unilm_with_a_configuration_and_vocabulary_of_elsewhere(tmp_path):
    small("bert", tmp_path)
    for name in ("config.json", "vocab.txt"):
        shutil.move(tmp_path / name, tmp_path / f"other-{name}") if (tmp_path / name).exists() else None
    given = ["--model", f"标题={tmp_path / 'model.ckpt'}", "--mask", "prefix", "--cache-memory", "100kB", "--port", "0"]
    given += ["--config", str(tmp_path / "other-config.json"), "--tokenizer", str(tmp_path / "other-vocab.txt")]
    with subprocess.Popen([*HANMO, *given], stderr=subprocess.PIPE, text=True) as process:
        line = first_line(process)
        found = re.search(r"http://\S+\d", line)
        assert found, line + process.stderr.read()
        body = {"prompt": "今天天气", "max_tokens": 5, "seed": 3, "top_k": 9}
        answer = httpx.post(f"{found[0]}/v1/completions", json=body, timeout=60).json()
        writer = hanmo.load(
            tmp_path / "model.ckpt",
            mask="prefix",
            config=tmp_path / "other-config.json",
            tokenizer=tmp_path / "other-vocab.txt",
        )
        assert answer["choices"][0]["text"] == writer.write("今天天气", max_tokens=5, seed=3, top_k=9, stop=None)[0]
        beams = {"prompt": "今天", "beams": 60, "max_tokens": 30}
        told = httpx.post(f"{found[0]}/v1/completions", json=beams, timeout=60).json()["error"]["message"]
        assert "60 x 34 tokens, prompt and text, do not fit the caches, which have room for" in told
        process.terminate()


@pytest.mark.parametrize(("given", "speculate"), [((), True), (("--speculation", "off"), False)])
def test_rows_draft_unless_speculation_is_off(monkeypatch, given, speculate):
    rows, submit = [], Scheduler.submit

    async def ask(server):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(server.config.app), base_url="http://localhost"
        ) as client:
            answer = await client.post("/v1/completions", json={"prompt": "床前", "max_tokens": 1})
            assert answer.status_code == 200

    monkeypatch.setattr(Scheduler, "submit", lambda self, new, emit: rows.extend(new) or submit(self, new, emit))
    monkeypatch.setattr(Server, "run", lambda server, sockets: asyncio.run(ask(server)))
    assert run("--port", "0", *given).exit_code == 0
    assert [row.speculate for row in rows] == [speculate]


@pytest.mark.slow
def test_a_server_from_the_shell_answers():
    with subprocess.Popen([*HANMO, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        url = re.search(r"http://\S+\d", first_line(process))[0]
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "床前明月光，", "max_tokens": 1}, timeout=60)
        process.terminate()
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--host", "0.0.0.0"],
            "--host is '0.0.0.0', which other machines can reach, and there is no key; give --api-key",
        ),
        (["--api-key", ""], "--api-key is empty or holds white space"),
        (["--root-path", "x"], "--root-path is 'x'; expected a path that begins with /"),
        (
            ["--host", "no host", "--api-key", "x"],
            "--host is 'no host', port 8000; cannot listen there: ",
        ),
        (["--model", "/nowhere/model.ckpt", "--port", "0"], "no checkpoint at /nowhere/model.ckpt"),
        (["--model", GOLDEN, "--port", "0"], "model.ckpt; put its vocab.txt or *.model there"),
        (["--api-keys", "/nowhere/keys"], "/nowhere/keys is missing"),
        (["--cache-memory", "much", "--port", "0"], "memory is 'much'; expected a size such as 22GiB"),
        (["--mask", "prefix", "--port", "0"], "mask is 'prefix'"),
        (
            ["--port", "0", "--model", "/a/b", "--model", "/c/d", "--family", "bert"],
            "--family would be for every model",
        ),
        (["--port", "0", "--model", "x=/a/model.ckpt", "--model", "x=/b/model.ckpt"], "two models are named 'x'"),
    ],
)
def test_what_it_does_not_start_with_is_one_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code in (1, 2) and message in " ".join(result.stderr.replace("│", " ").split())


def test_a_port_in_use_is_one_line_before_a_model_is_opened():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("--port", str(port), "--model", "/nowhere/model.ckpt")
    assert result.exit_code == 1
    assert result.stderr == f"hanmo: --host is '127.0.0.1', port {port}; cannot listen there: Address already in use\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "holds no key; write one a line"),
        (b"# one\n", "holds no key; write one a line"),
        (b"sk\n# two\nalice: sk-1\n", "line 3 is no key; write one a line without spaces, and # before a comment"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_file_without_keys_or_with_something_else_is_refused(tmp_path, content, message):
    (tmp_path / "keys").write_bytes(content)
    result = run("--api-keys", str(tmp_path / "keys"))
    assert result.exit_code == 1 and f"keys {message}" in result.stderr


def test_a_file_of_keys_may_have_a_byte_order_mark_and_comments(tmp_path, monkeypatch):
    (tmp_path / "keys").write_bytes("\ufeff第一\r\n\r\n# mine\r\n second\r\n".encode())
    seen = []
    monkeypatch.setattr("hanmo.server.security.check_host", lambda host, keys, anonymous: seen.extend(keys))
    run("--api-keys", str(tmp_path / "keys"), "--model", "/nowhere/model.ckpt", "--port", "0")
    assert seen == ["第一", "second"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ()),
        (("--allowed-host", "a.example"), ["a.example"]),
        (("--api-key", "x"), None),
        (("--api-key", "x", "--allowed-host", "a.example"), None),
        (("--host", "0.0.0.0", "--anonymous"), None),
    ],
)
def test_without_a_key_this_machine_alone_is_the_host(monkeypatch, given, expected):
    seen = []
    monkeypatch.setattr("hanmo.server.models.open_served", lambda name, path, **how: None)
    monkeypatch.setattr("hanmo.server.app.make_app", lambda models, **how: seen.append(how["hosts"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        app(["serve", "--port", "0", *given], standalone_mode=False)
    assert seen == [expected]


def test_models_of_one_gpu_share_what_is_free_on_it(monkeypatch):
    monkeypatch.setattr("hanmo.training.memory.free_memory", lambda device: 1200)
    engine = SimpleNamespace(device="cuda", token_bytes=10)
    options = {"cache_memory": None, "speculation": "auto", "max_rows": 1, "max_queue": 1, **dict.fromkeys(OPENING)}
    for count, room in ((1, 60), (3, 20)):
        shared = _shared(options, count)
        assert _cache_ids(engine, shared["cache_memory"], shared["models"]) == room


def test_a_missing_extra_names_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    result = run()
    assert result.exit_code == 1 and "pip install 'hanmo[serve]'" in result.stderr
