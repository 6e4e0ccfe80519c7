"""SIGTERM, a full queue, and clients that leave."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from toy_server import byte_model, running, wait_for

TEXT = "一二三四五六七八九十" * 2


def completion(**body):
    return {"prompt": "数：", "max_tokens": 300, **body}


@pytest.mark.slow
def test_sigterm_lets_a_stream_end_and_gives_new_requests_503():
    program = [sys.executable, "-c", SERVER, json.dumps({"数：": TEXT})]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=env) as process:
        url = process.stdout.readline().strip()
        with httpx.stream("POST", f"{url}/v1/completions", json=completion(stream=True), timeout=60) as stream:
            lines = (line for line in stream.iter_lines() if line)
            pieces = [next(lines)]
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
            refused = httpx.post(f"{url}/v1/completions", json=completion())
            assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
            assert refused.json()["error"]["message"] == "the server is shutting down"
            pieces += lines
        assert pieces.pop() == "data: [DONE]"
        choices = [json.loads(piece[6:])["choices"][0] for piece in pieces]
        assert "".join(choice["text"] for choice in choices) == TEXT
        assert process.wait(30) == 0


def test_a_second_signal_ends_a_server_whose_threads_compute():
    program = [sys.executable, "-c", SLOW + SERVER, json.dumps({"数：": TEXT})]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=env) as process:
        with leaving(process.stdout.readline().strip(), completion(beams=2)):
            assert process.stdout.readline() == "computes\n"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == -signal.SIGTERM


SLOW = """
import threading, time
time.sleep = lambda seconds: print("computes", flush=True) or threading.Event().wait(30)
"""
SERVER = """
import json, sys
from toy_server import byte_model
from hanmo.server.app import make_app
from hanmo.server.run import Server, bind
model = byte_model(json.loads(sys.argv[1]), pace=0.05)
Server(make_app([model]), ready=lambda url: print(url, flush=True)).run([bind("127.0.0.1", 0)])
"""


def test_after_the_grace_a_stream_ends_with_an_error():
    model = byte_model({"数：": TEXT}, pace=0.02)
    with running(model, grace=0.2) as url:
        with httpx.stream("POST", f"{url}/v1/completions", json=completion(stream=True), timeout=60) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            running.server.handle_exit(signal.SIGTERM, None)
            assert "the scheduler was closed before the rows ended" in list(lines)[-1]


def test_a_full_queue_gives_429_with_a_time_to_come_again():
    model = byte_model({"数：": TEXT}, pace=0.01, max_rows=1, max_queue=2)
    with running(model) as url:
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=completion(), timeout=60))
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [answer for answer in answers if answer.status_code == 429]
        assert sorted({answer.status_code for answer in answers}) == [200, 429] and len(refused) >= 2
        assert refused[0].headers["retry-after"] == "1"
        assert refused[0].json()["error"]["code"] == "queue_full"
        answers[:] = [answer for answer in answers if answer.status_code == 200]
        assert {answer.json()["choices"][0]["text"] for answer in answers} == {TEXT}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_rows_within_a_step(stream):
    model = byte_model({"数：": TEXT}, pace=0.1)
    with running(model) as url:
        with leaving(url, completion(stream=stream, n=3)):
            wait_for(lambda: model.scheduler.stats.running == 3)
            steps = model.pipeline.engine.steps
        # Closed in the middle of a step, which ends; the others are what two threads may take to notice.
        wait_for(lambda: model.scheduler.stats.running == 0)
        assert model.pipeline.engine.steps - steps <= 4 < len(TEXT.encode())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_at_any_moment_frees_its_rows(stream):
    model = byte_model({"数：": "x" * 450}, pace=0.02)
    with running(model) as url:
        for delay in range(20):
            with leaving(url, completion(stream=stream, n=2, max_tokens=450), reset=delay % 2 == 0):
                time.sleep(0.002 * delay)
            wait_for(lambda: not running.server._state.active)
        wait_for(lambda: not model.scheduler.stats.running)
        assert model.pipeline.engine.steps < 300  # no text was generated to its end


def test_all_requests_of_a_connection_end_when_the_client_leaves():
    model = byte_model({"数：": "x" * 450}, pace=0.02)
    with running(model) as url:
        with leaving(url, completion(stream=True, max_tokens=450), times=3, reset=True):
            wait_for(lambda: model.scheduler.stats.running == 1)
        wait_for(lambda: not running.server._state.active)
        assert model.pipeline.engine.steps < 300


def test_a_client_that_reads_nothing_is_dropped():
    with running(byte_model({"数：": "x" * 450}), send_buffer=4096, write_timeout=0.3) as url:
        with reading_slowly(url, completion(stream=True, n=8, max_tokens=450, logprobs=5)):
            wait_for(lambda: running.server._state.active)
            wait_for(lambda: not running.server._state.active)


def test_a_client_that_reads_slowly_is_not_dropped():
    with running(byte_model({"数：": "x" * 450}), send_buffer=4096, write_timeout=0.3) as url:
        with reading_slowly(url, completion(stream=True, n=4, max_tokens=450, logprobs=5)) as connection:
            begun, read = time.monotonic(), b""
            while not read.endswith(b"0\r\n\r\n"):
                time.sleep(0.02)
                part = connection.recv(4096)
                assert part
                read += part
    assert b"data: [DONE]" in read and time.monotonic() - begun > 0.6  # twice as long as a client may read nothing


@contextmanager
def reading_slowly(url, body):
    """Send a request by a connection that holds little of the answer until it is read."""
    place, content = urlsplit(url), json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((place.hostname, place.port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield connection


def test_a_beam_search_ends_within_a_step_when_its_client_leaves():
    model = byte_model({"数：": TEXT}, pace=0.1)
    engine = model.pipeline.engine
    with running(model) as url:
        with leaving(url, completion(beams=2)):
            wait_for(lambda: engine.steps)
            steps = engine.steps
        model.thread.executor.submit(int).result(30)  # after the search
        assert engine.steps - steps <= 4


@contextmanager
def leaving(url, body, *, path="/v1/completions", times=1, reset=False):
    """Send requests, and close the connection at the end of the block without reading the answers.

    reset: at once, by RST.
    """
    place, content = urlsplit(url), json.dumps(body).encode()
    with socket.create_connection((place.hostname, place.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall((f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content) * times)
        yield
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
