"""What other servers were seen to do wrong: half characters, stop strings that leak, requests that block others."""

import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from urllib.parse import quote, urlsplit

import httpx
import pytest
from test_completions import ask, joined, streamed
from test_model_pipeline import small
from toy_server import byte_model, running, wait_for

from hanmo.generate.scheduler import Scheduler
from hanmo.inference.fused import support
from hanmo.pipeline import SMALL
from hanmo.server import completions
from hanmo.server.generation import Generation, Row
from hanmo.server.models import Served, open_served

JSON = {"headers": {"content-type": "application/json"}, "timeout": 60}
FAMILY = "👨‍👩‍👧"
TEXTS = {"笑：": f"😀好{FAMILY}。", "“他说": "你好，……”我。”完", "长：": "春眠不觉晓，处处闻啼鸟。" * 6}

needs_kernel = pytest.mark.skipif(support.kernels("quantized") is None, reason="AVX2 is missing")


@pytest.fixture(scope="module")
def url():
    with running(byte_model(TEXTS)) as url:
        yield url


@pytest.mark.parametrize("most", range(1, 31))
def test_a_character_of_several_tokens_is_never_half_in_any_chunk(url, most):
    chunks = streamed(url, prompt="笑：", max_tokens=most, logprobs=1)
    assert "\ufffd" not in json.dumps(chunks, ensure_ascii=False)
    (choice,) = joined(chunks)
    text = TEXTS["笑："].encode()[:most].decode(errors="ignore")
    assert choice["text"] == text == "".join(choice["logprobs"]["tokens"])


@pytest.mark.parametrize("stop", ["……", "。”", "”我", ["x", "，……”"], "你"])
def test_a_stop_string_over_several_tokens_never_leaks(url, stop):
    expected = min((TEXTS["“他说"].partition(each)[0] for each in ([stop] if isinstance(stop, str) else stop)), key=len)
    shown = ""
    for chunk in streamed(url, prompt="“他说", max_tokens=200, stop=stop):
        shown += chunk["choices"][0]["text"]
        assert expected.startswith(shown)
    assert shown == expected
    assert ask(url, prompt="“他说", max_tokens=200, stop=stop).json()["choices"][0]["text"] == expected


@pytest.mark.parametrize(
    "body", [b'{"prompt": "\\ud83d"}', b'{"prompt": "a\\ude00"}', b'{"model": "\\ud800", "prompt": "a"}']
)
def test_half_a_surrogate_pair_is_refused(url, body):
    for path in ("completions", "embeddings", "fill"):
        answer = httpx.post(f"{url}/v1/{path}", content=body, **JSON)
        assert answer.status_code == 400 and "half of a surrogate pair" in answer.json()["error"]["message"]


def test_offsets_count_characters_where_the_vocabulary_lacks_some_or_has_others_in_their_place(tmp_path):
    loaded = small("gpt2_ml", tmp_path)
    text = "今天“X龘”，Ａ 明月"
    model = Served("小", loaded, "toy", Scheduler(loaded.engine))
    with running(model) as url:
        body = {"model": "小", "prompt": text, "max_tokens": 3, "echo": True, "logprobs": 1, "seed": 1}
        (choice,) = ask(url, **body).json()["choices"]
        found = choice["logprobs"]
        assert choice["text"].startswith(text) and len(found["tokens"]) == len(found["text_offset"])
        for token, start in zip(found["tokens"], found["text_offset"], strict=True):
            assert choice["text"][start : start + len(token)] == token
        # Every character but the space belongs to a token, unknown ones by the text's own character.
        assert "".join(found["tokens"]) == choice["text"].replace(" ", "", 1)
        assert joined(streamed(url, **body)) == [choice]


def test_a_slow_reader_of_several_texts_stalls_nobody_and_holds_each_text_once(monkeypatch):
    model, made = byte_model({"长：": "春" * 150}), []

    def kept(*args, **options):
        made.append(Generation(*args, **options))
        return made[-1]

    monkeypatch.setattr(completions, "Generation", kept)
    with running(model, send_buffer=4096) as url:
        place = urlsplit(url)
        body = json.dumps({"prompt": "长：", "n": 8, "max_tokens": 450, "logprobs": 5, "stream": True}).encode()
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((place.hostname, place.port))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: model.scheduler.stats.running == 8)
            assert ask(url, prompt="长：", max_tokens=6).json()["choices"][0]["text"] == "春春"
            wait_for(lambda: model.scheduler.stats.running == 0)  # though nothing was read
            assert 0 < len(made[0]._pieces) <= 8  # a piece a text
            read = b""
            while not read.endswith(b"0\r\n\r\n"):
                part = reader.recv(1 << 16)
                assert part
                read += part
        text = read.decode()
        assert text.count('"finish_reason":"length"') == 8 and "[DONE]" in text
        # The pieces that waited were joined: far fewer chunks than the 8 * 450 tokens.
        assert text.count("data: {") < 8 * 450 / 2


def test_a_text_that_cannot_be_decoded_is_an_error_and_no_answer_that_never_comes(url, monkeypatch):
    def receive(self, event):
        raise RuntimeError("a decoder's")

    monkeypatch.setattr(Row, "receive", receive)
    assert ask(url, prompt="笑：", max_tokens=3).status_code == 500
    assert '"type":"server_error"' in ask(url, prompt="笑：", max_tokens=3, stream=True).text


@pytest.mark.slow  # measures time
def test_a_prompt_of_5_megabytes_keeps_health_under_100_ms():
    command = [sys.executable, "-m", "hanmo.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        url = re.search(r"http://\S+", process.stderr.readline())[0]
        content = json.dumps({"prompt": "春眠不觉晓处处闻啼鸟。" * (5_000_000 // 33)}, ensure_ascii=False).encode()
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/completions", content=content, **JSON))
        )
        times = []
        with httpx.Client() as client:
            client.get(f"{url}/health")
            thread.start()
            while thread.is_alive() or len(times) < 20:
                begun = time.monotonic()
                assert client.get(f"{url}/health").status_code == 200
                times.append(time.monotonic() - begun)
                time.sleep(0.005)
        process.terminate()
    assert answers[0].status_code == 400
    assert "tokens, the model knows 1024 positions" in answers[0].json()["error"]["message"]
    assert max(times) < 0.1, (max(times), statistics.median(times))


def test_a_path_prefix_and_a_chinese_name():
    with running(byte_model(TEXTS, name="春/晓"), root_path="/写作") as url:
        for prefix in ("", "/写作"):
            base = url + quote(prefix)
            assert httpx.get(f"{base}/health").json() == {"status": "ok"}
            assert httpx.get(f"{base}/v1/models/{quote('春/晓')}").json()["id"] == "春/晓"
            answer = ask(base, model="春/晓", prompt="笑：", max_tokens=4)
            assert answer.json()["choices"][0]["text"] == "😀"
        assert httpx.get(url + quote("/写作")).headers["location"] == quote("/写作/")
        assert ask(f"{url}/v1/", prompt="笑：").status_code == 404
        document = httpx.get(f"{url}/openapi.json").json()
        assert document["servers"] == [{"url": "/写作"}]


@pytest.mark.parametrize("name", ["gpt2_ml", "t5.1.1", pytest.param("int8", marks=needs_kernel)])
def test_a_seed_gives_the_same_text_alone_and_beside_31_others(tmp_path, monkeypatch, name):
    if name == "int8":  # of the fused step, which takes larger models
        monkeypatch.setattr(support, "LEAST_BYTES", 0)
        model = open_served("小", SMALL, weights="int8", threads=1, speculation="off")
        assert "-int8-fixed-" in model.fingerprint
    else:
        loaded = small(name, tmp_path)
        model = Served("小", loaded, "toy", Scheduler(loaded.engine))
    rows, gate, sizes = model.scheduler._batch._rows, threading.Event(), []
    step = rows.step
    rows.step = lambda work: sizes.append(len(work)) or (gate.wait(60) and step(work))
    bias = {str(id): -100 for id in model.pipeline.marks.ends}
    answers = {}

    def get(name, **body):
        answers[name] = ask(url, model="小", top_k=100, logit_bias=bias, **body).json()["choices"]

    one = {"prompt": "床前明月", "seed": 9, "max_tokens": 12}
    many = {"prompt": ["今天" * (1 + place % 9) for place in range(31)], "seed": 5, "max_tokens": 16}
    with running(model) as url:
        threads = []
        for name, body, seen in (("others", many, "running"), ("beside", one, "waiting")):
            threads.append(threading.Thread(target=get, args=(name,), kwargs=body))
            threads[-1].start()
            wait_for(lambda seen=seen: getattr(model.scheduler.stats, seen))
        gate.set()
        for thread in threads:
            thread.join()
        get("alone", **one)
    assert sizes.count(32) >= 12 and len({each["text"] for each in answers["others"]}) > 1
    assert answers["beside"] == answers["alone"] and answers["alone"][0]["finish_reason"] == "length"
