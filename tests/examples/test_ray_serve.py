"""The example under Ray Serve: one of two replicas is killed under load; only what it was answering may be lost."""

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ray_serve.py"
CLIENTS = 6


def test_a_replica_takes_the_keys_of_a_file_and_as_many_requests_as_the_command_line(tmp_path, monkeypatch):
    builds, made = [], []
    bound = SimpleNamespace(bind=lambda: None)
    serve = SimpleNamespace(
        ingress=lambda build: lambda: builds.append(build),
        deployment=lambda asgi, **options: bound,
        start=lambda **options: None,
        run=lambda app, **options: None,
    )
    (tmp_path / "keys").write_text("# of Alice\nsk-1\n")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    monkeypatch.setattr(sys, "argv", ["ray_serve.py", "--api-keys", str(tmp_path / "keys"), "--max-rows", "4"])
    monkeypatch.setattr("hanmo.server.models.open_served", lambda name, path, **how: None)
    monkeypatch.setattr("hanmo.server.app.make_app", lambda models, **how: made.append(how))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    builds[0]()
    assert made == [{"keys": ["sk-1"], "max_requests": 2 * (4 + 256)}]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="looked for the package ray; it is not installed")
def test_a_killed_replica_loses_at_most_what_it_was_answering(free_port):
    url, answers, ended = f"http://127.0.0.1:{free_port}", [], threading.Event()
    program = [sys.executable, str(EXAMPLE), "--port", str(free_port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(program, start_new_session=True, **quiet) as process:
        try:
            wait_for(lambda: status(url) == 200)
            threads = [threading.Thread(target=keep_asking, args=(url, answers, ended)) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(answers) > 2 * CLIENTS)
            first = replicas()
            os.kill(first[0], signal.SIGKILL)
            wait_for(lambda: len(replicas()) == len(first) == 2 and first[0] not in replicas())
            again = len(answers)
            wait_for(lambda: len(answers) > again + 2 * CLIENTS)
            ended.set()
            for thread in threads:
                thread.join()
        finally:
            ended.set()
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert sum(answer != 200 for answer in answers) <= CLIENTS, answers
    assert answers[-CLIENTS:] == [200] * CLIENTS


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def keep_asking(url, answers, ended):
    while not ended.is_set():
        try:
            body = {"prompt": "话说", "max_tokens": 100}
            answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code)
        except httpx.HTTPError as error:
            answers.append(type(error).__name__)


def status(url):
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code
    except httpx.HTTPError:
        return None


def replicas():
    """Return the process ids of the replicas."""
    shown = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in re.findall(r"^ *(\d+) ray::\S*ServeReplica:hanmo", shown, re.MULTILINE)]


def wait_for(condition, seconds=180.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not come true"
        time.sleep(0.2)
