"""/v1/embeddings, /v1/fill, /v1/tasks."""

import httpx
import numpy as np
import openai
import pytest
from test_model_pipeline import small
from toy_server import byte_model, running, task_folder

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
        ("embeddings", {"input": [1, 99]}, "text 0 holds id 99; the vocabulary has ids 0 to "),
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
