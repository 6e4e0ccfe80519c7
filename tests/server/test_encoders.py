"""/v1/embeddings, /v1/fill, /v1/tasks."""

import asyncio
import gc
import signal
import threading
import time
import weakref
from contextlib import ExitStack
from urllib.parse import quote

import httpx
import numpy as np
import openai
import pytest
from test_model_pipeline import small
from test_shutdown import leaving
from toy_server import byte_model, running, task_folder, wait_for

from hanmo.generate.scheduler import Scheduler
from hanmo.server import state
from hanmo.server.model_thread import ModelThread
from hanmo.server.models import Served, open_served
from hanmo.tasks.pipeline import open_task


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return small("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def url(encoder):
    with running(Served("编", encoder, "toy"), byte_model()) as url:
        yield url


def post(url, path, **body):
    return httpx.post(f"{url}/v1/{path}", json={"model": "编", **body}, timeout=60)


def test_the_openai_client_gets_the_vectors_of_the_library(url, encoder):
    texts = ["今天天气", "床前明月光，", *["明月"] * 40]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:  # which asks for base64
        answer = client.embeddings.create(model="编", input=texts)
        assert np.allclose([each.embedding for each in answer.data], encoder.encode(texts), atol=1e-6)
        assert [each.index for each in answer.data] == list(range(42))
        assert answer.usage.prompt_tokens == sum(len(encoder.tokenizer.encode(text)) for text in texts)
        plain = client.embeddings.create(model="编", input="今天天气", encoding_format="float")
        assert np.allclose(plain.data[0].embedding, encoder.encode("今天天气")[0], atol=1e-6)
        ids = encoder.tokenizer.encode("今天天气").ids
        for given in (ids, [ids, [2, 3]]):
            answer = client.embeddings.create(model="编", input=given)
            assert np.allclose(answer.data[0].embedding, plain.data[0].embedding, atol=1e-6)
        assert (len(answer.data), answer.usage.prompt_tokens) == (2, len(ids) + 2)
    first = post(url, "embeddings", input="今天天气", pool="first").json()["data"][0]["embedding"]
    assert np.allclose(first, encoder.encode("今天天气", pool="first")[0], atol=1e-6)


def test_masks_are_filled_as_by_the_library(url, encoder):
    answer = post(url, "fill", input="今天[MASK]气", k=3).json()
    (expected,) = encoder.fill("今天[MASK]气", k=3)
    assert [each["token"] for each in answer["masks"][0]] == [each.token for each in expected]
    assert answer["masks"][0][0]["probability"] == pytest.approx(expected[0].probability)
    masks = {model["id"]: model["mask"] for model in httpx.get(f"{url}/v1/models").json()["data"]}
    assert masks == {"编": "[MASK]", "字节": None}


def test_a_task_predicts_as_by_the_library(tmp_path):
    model = open_served("分类", task_folder(tmp_path))
    task = open_task(tmp_path / "task")
    with running(model) as url:
        texts = ["今天天气", ["床前", "明月光"]]
        answer = httpx.post(f"{url}/v1/tasks/分类", json={"input": texts}).json()
        assert answer["results"] == task.predict(["今天天气", ("床前", "明月光")])
        assert model.abilities == ["embeddings", "tasks"]
        long = httpx.post(f"{url}/v1/tasks/分类", json={"input": "天" * 60})  # in windows of the model's positions
        assert long.json()["results"] == [task.predict("天" * 60)]
        wrong = httpx.post(f"{url}/v1/tasks/分类", json={"input": [{"x": 1}]})
        assert wrong.status_code == 400
        assert httpx.post(f"{url}/v1/tasks/别", json={"input": "今"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("embeddings", {"input": "天" * 60}, "has 62 tokens, the model knows 40 positions"),
        ("embeddings", {"input": [1, "天"]}, "input should be a valid string"),
        ("embeddings", {"input": [1, 99]}, "input holds id 99; the vocabulary has ids 0 to "),
        ("embeddings", {"input": [[2] * 41]}, "has 41 tokens, the model knows 40 positions"),
        ("embeddings", {"input": [[]]}, "at least 1 item"),
        ("embeddings", {"input": "天", "dimensions": 3}, "dimensions is 3; the model has 16"),
        ("embeddings", {"input": "天", "model": "字节"}, "is opened for generation alone"),
        ("fill", {"input": "今天"}, "has no [MASK]"),
        ("fill", {"input": "今[MASK]" * 30}, "the model knows 40 positions"),
        ("fill", {"input": "今[MASK]", "k": 0}, "k is 0"),
        ("completions", {"prompt": "今"}, "the model '编' does not generate text"),
    ],
)
def test_what_is_wrong_is_named(url, path, body, message):
    answer = post(url, path, **body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_what_is_wrong_with_a_later_text_is_told_before_vectors_are_computed(url, encoder, monkeypatch):
    calls, encode = [], encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, **how: calls.append(len(texts)) or encode(texts, **how))
    assert post(url, "embeddings", input=["天"] * 99 + ["天" * 60]).status_code == 400 and calls == []
    assert post(url, "embeddings", input=["天"] * 99, dimensions=3).status_code == 400 and calls == [32]


def test_answers_are_written_outside_of_the_event_loop(url, monkeypatch):
    threads, to_json = [], state.to_json
    monkeypatch.setattr(state, "to_json", lambda each: threads.append(threading.current_thread().name) or to_json(each))
    assert len(post(url, "embeddings", input=["天", "地"]).json()["data"]) == 2
    assert len(post(url, "fill", input="今[MASK]", k=2).json()["masks"][0]) == 2
    assert len(threads) == 3 + 1 + 2 + 1 and all(name.startswith("hanmo-requests") for name in threads)


def test_more_requests_than_may_wait_are_refused(encoder):
    model, gate, answers = Served("编", encoder, "toy", max_queue=1), threading.Event(), []
    with running(model) as url:
        model.thread.executor.submit(gate.wait, 60)
        threads = [
            threading.Thread(target=lambda: answers.append(post(url, "embeddings", input="天").status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: answers)
        assert answers == [429]
        gate.set()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [200, 200, 429]


def test_texts_are_tokenized_in_the_thread_of_their_model_while_others_are_answered(encoder, monkeypatch):
    model, gate, names = Served("编", encoder, "toy"), threading.Event(), []
    encode_batch = type(encoder.tokenizer).encode_batch

    def slow(self, *texts, **how):
        names.append(threading.current_thread().name)
        assert gate.wait(60)
        return encode_batch(self, *texts, **how)

    monkeypatch.setattr(type(encoder.tokenizer), "encode_batch", slow)
    with running(model, byte_model()) as url, ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(leaving(url, {"model": "编", "input": "天"}, path="/v1/embeddings"))
        wait_for(lambda: running.server._state.active == 5 and names)
        assert post(url, "completions", model="字节", prompt="a", max_tokens=1).status_code == 200
        gate.set()
    assert all(name.startswith("hanmo-model") for name in names)


def test_a_request_that_left_holds_no_memory_while_another_is_computed():
    thread, gate = ModelThread(9), threading.Event()

    class Work:
        def __call__(self):
            raise AssertionError

    async def leave():
        work = Work()
        held, task = weakref.ref(work), asyncio.ensure_future(thread.run(work))
        del work
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        del task
        return held

    thread.executor.submit(gate.wait, 60)
    held = asyncio.run(leave())
    gc.collect()
    assert held() is None
    gate.set()
    thread.close()


def test_requests_that_wait_when_the_server_is_closed_get_503(encoder):
    model, gate, answers = Served("编", encoder, "toy"), threading.Event(), []
    with running(model, grace=0.1) as url:
        model.thread.executor.submit(gate.wait, 60)
        thread = threading.Thread(target=lambda: answers.append(post(url, "embeddings", input="天")))
        thread.start()
        wait_for(lambda: model.thread._requests)
        running.server.handle_exit(signal.SIGTERM, None)
        thread.join()
        gate.set()
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "shutting_down"


def test_a_t5_has_room_for_the_beams_that_fill_a_text(tmp_path):
    loaded = small("t5.1.1", tmp_path)
    with running(Served("编", loaded, "toy", Scheduler(loaded.engine, cache_ids=500))) as url:
        for k, message in ((65, "k is 65; a T5 searches with so many beams: give 64 or fewer"), (64, "do not fit")):
            assert message in post(url, "fill", input="今[MASK]", k=k).json()["error"]["message"]


def test_nothing_but_the_scheduler_uses_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("hanmo.model_pipeline.QUEUED", ("cpu",))
    loaded = small("gpt2_ml", tmp_path)
    model = Served("编", loaded, "toy", Scheduler(loaded.engine))
    with running(model) as url:
        for path in ("embeddings", "fill"):
            told = post(url, path, input="今天").json()["error"]["message"]
            assert told == "the scheduler alone uses the GPU of the model '编'; serve it on a CPU for this"
    assert model.abilities == ["completions"]


def test_a_long_text_of_a_task_ends_when_its_client_leaves(tmp_path):
    model, passes = open_served("分类", task_folder(tmp_path)), []
    model.pipeline.model.register_forward_pre_hook(lambda *_: passes.append(time.sleep(0.05)))
    with running(model) as url:
        with leaving(url, {"input": "天" * 100_000}, path=quote("/v1/tasks/分类")):
            wait_for(lambda: passes)
        model.thread.executor.submit(int).result(30)  # after the prediction
    assert len(passes) < 20
