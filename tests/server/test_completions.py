"""/v1/completions as OpenAI's client and curl see it."""

import json
import shutil
import subprocess

import httpx
import numpy as np
import openai
import pytest
from test_model_pipeline import small
from toy_server import byte_model, running

import hanmo
from hanmo.generate.scheduler import Scheduler
from hanmo.pipeline import SMALL
from hanmo.server.models import Served, name_of, open_served

TEXTS = {"第一：": "😀好，……”完。\n再来", "say ": "one two three"}
SMALL_NAME = "hanmo-small"


@pytest.fixture(scope="module")
def url():
    small = open_served(name_of(SMALL), SMALL, weights="int8")
    with running(byte_model(TEXTS), small) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(url, **body):
    return httpx.post(f"{url}/v1/completions", json={"model": "字节", **body}, timeout=60)


def streamed(url, **body):
    """Return the chunks of a stream."""
    with httpx.stream("POST", f"{url}/v1/completions", json={"model": "字节", **body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def joined(chunks):
    """Join the chunks of a stream into choices as they are without one."""
    found = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        if (whole := found.setdefault(choice["index"], choice)) is choice:
            continue
        whole["text"] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            whole["logprobs"][name] += values
        whole |= {name: choice[name] for name in ("finish_reason", "stop_reason")}
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize(("weights", "rounding"), [("float32", "fixed"), ("bfloat16", "joined")])
def test_requests_to_the_engine_of_a_gpu_are_computed_together(monkeypatch, weights, rounding):
    monkeypatch.setattr("hanmo.model_pipeline.QUEUED", ("cpu",))
    model = open_served("古诗", SMALL, weights=weights, device="cpu", cache_memory=1 << 26)
    assert f"-{weights}-{rounding}-" in model.fingerprint
    prompts = ["床前明月光，", "我", "白日依山尽，黄河入海流，"]
    with running(model) as url:
        found = ask(url, model="古诗", prompt=prompts, n=2, max_tokens=9, seed=5).json()
        assert found["usage"]["completion_tokens"] > 9 and model.scheduler.stats.steps <= 9
        if rounding == "fixed":
            alone = [ask(url, model="古诗", prompt=each, n=2, max_tokens=9, seed=5).json() for each in prompts]
            assert [c["text"] for c in found["choices"]] == [c["text"] for each in alone for c in each["choices"]]


def test_the_openai_client_gets_texts_pieces_and_models(client):
    assert [model.id for model in client.models.list()] == ["字节", SMALL_NAME]
    assert client.models.retrieve("字节").owned_by == "hanmo"
    answer = client.completions.create(model=SMALL_NAME, prompt="床前明月光，", max_tokens=12, seed=7)
    assert answer.object == "text_completion" and answer.model == SMALL_NAME
    assert answer.system_fingerprint.startswith(f"hanmo-{hanmo.__version__}-int8-")
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        7,
        12,
        19,
    )  # with the mark
    again = client.completions.create(
        model=SMALL_NAME,
        prompt="床前明月光，",
        max_tokens=12,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    *pieces, last = list(again)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text and len(pieces) > 1
    assert (last.choices, last.usage) == ([], answer.usage)


def test_a_seed_gives_the_text_of_the_library(client):
    answer = client.completions.create(model=SMALL_NAME, prompt="话说", max_tokens=20, seed=11)
    writer = hanmo.open_writer(weights="int8")
    expected = writer.write_detailed("话说", max_tokens=20, seed=11, max_chars=None, stop=None)
    assert answer.choices[0].text == expected[0].text and answer.seed == 11
    fresh = client.completions.create(model=SMALL_NAME, prompt="话说", max_tokens=20)
    again = client.completions.create(model=SMALL_NAME, prompt="话说", max_tokens=20, seed=fresh.seed)
    assert again.choices[0].text == fresh.choices[0].text


def test_the_openai_client_gets_samples_scores_echo_and_stops(client):
    answer = client.completions.create(
        model="字节",
        prompt=["say ", "第一："],
        n=2,
        max_tokens=200,
        logprobs=2,
        echo=True,
        stop=[" three", "\n"],
        seed=3,
    )
    texts = ["say one two"] * 2 + ["第一：😀好，……”完。"] * 2
    assert [(each.index, each.text, each.finish_reason) for each in answer.choices] == [
        (index, text, "stop") for index, text in enumerate(texts)
    ]
    for each in answer.choices:
        found = each.logprobs
        assert "".join(found.tokens) == each.text and found.token_logprobs[0] is None
        for token, start, logprob, top in zip(
            found.tokens, found.text_offset, found.token_logprobs, found.top_logprobs, strict=True
        ):
            assert each.text[start:].startswith(token) and (logprob is None) == (top is None)


def test_several_samples_are_those_of_single_calls(url):
    several = ask(url, prompt="ab", n=3, seed=5, max_tokens=9).json()["choices"]
    single = [ask(url, prompt="ab", seed=5, sample=place, max_tokens=9).json()["choices"][0] for place in range(3)]
    assert [each["text"] for each in several] == [each["text"] for each in single]
    assert len({each["text"] for each in several}) == 3 and [each["index"] for each in several] == [0, 1, 2]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "第一：", "max_tokens": 200},
        {"prompt": "第一：", "max_tokens": 200, "logprobs": 2, "echo": True},
        {"prompt": "第一：", "max_tokens": 200, "stop": ["……”", "\n"], "logprobs": 0},
        {"prompt": ["ab", "say "], "n": 2, "max_tokens": 9, "seed": 3, "logprobs": 1, "echo": True},
        {"prompt": [[97, 98], [99]], "max_tokens": 9, "seed": 3, "echo": True, "logprobs": 3},
        {"prompt": [97, 98], "max_tokens": 9, "seed": 3, "stop": "e"},
        {"prompt": "say ", "max_tokens": 200, "stop_at_sentence": True, "min_chars": 2},
        {"prompt": "第一：", "max_tokens": 0, "echo": True, "logprobs": 1},
        {"prompt": "第一：", "max_tokens": 0, "echo": True},
        {"prompt": "第一：", "max_tokens": 0},
    ],
)
def test_streamed_pieces_joined_are_the_answer_without_a_stream(url, body):
    whole = ask(url, **body).json()["choices"]
    assert joined(streamed(url, **body)) == whole
    for choice in whole:
        assert choice["finish_reason"] in ("stop", "length")
        if choice["logprobs"]:
            tokens, starts = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
            assert "".join(tokens) == choice["text"]
            assert [
                choice["text"][start:].startswith(token) for start, token in zip(starts, tokens, strict=True)
            ].count(False) == 0


def test_echo_scores_a_text_without_continuing_it(url):
    answer = ask(url, prompt="say one", max_tokens=0, echo=True, logprobs=1).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("say one", "length")
    found = choice["logprobs"]
    assert found["tokens"] == list("say one") and found["text_offset"] == list(range(7))
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][4:] == pytest.approx([0, 0, 0], abs=1e-12)  # the table's own continuation
    assert found["top_logprobs"][4] == pytest.approx({"o": 0.0}, abs=1e-12)
    assert found["token_logprobs"][1] < -0.5
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}


def test_the_best_of_several_is_the_likeliest_by_mean(url):
    every = ask(url, prompt="ab", n=6, seed=5, max_tokens=9, logprobs=0).json()["choices"]
    means = [sum(each["logprobs"]["token_logprobs"]) / len(each["logprobs"]["tokens"]) for each in every]
    order = sorted(range(6), key=lambda place: -means[place])
    answer = ask(url, prompt="ab", n=2, best_of=6, seed=5, max_tokens=9).json()
    assert [each["text"] for each in answer["choices"]] == [every[place]["text"] for place in order[:2]]
    assert answer["usage"]["completion_tokens"] == 54


def test_a_bias_bans_and_forces_tokens(url):
    banned = ask(url, prompt="say ", max_tokens=3, logit_bias={str(ord("o")): -100}).json()["choices"][0]["text"]
    assert not banned.startswith("o")
    forced = ask(url, prompt="ab", max_tokens=5, logit_bias={str(ord("z")): 100}).json()["choices"][0]["text"]
    assert forced == "zzzzz"


def test_beams_give_the_best_texts_of_the_library_with_their_scores(url):
    answer = ask(url, model=SMALL_NAME, prompt="话说", beams=3, n=2, max_tokens=6, echo=True).json()
    expected = hanmo.open_writer(weights="int8").write_detailed(
        "话说", beams=3, n=2, max_tokens=6, max_chars=None, stop=None
    )
    assert [each["text"] for each in answer["choices"]] == ["话说" + each.text for each in expected]
    assert [each["score"] for each in answer["choices"]] == pytest.approx([each.score for each in expected], abs=0.1)


def test_lengths_and_sentence_ends_are_those_of_the_library(url):
    def text(**body):
        (choice,) = ask(url, prompt="第一：", **body).json()["choices"]
        return choice["text"], choice["finish_reason"], choice["stop_reason"]

    assert text(max_chars=2) == ("😀好", "length", "chars")
    assert text(stop_at_sentence=True, min_chars=1) == ("😀好，……”", "stop", "sentence")
    assert text(stop_at_sentence=True, min_chars=6) == ("😀好，……”完。", "stop", "sentence")
    assert text(max_tokens=300) == (TEXTS["第一："], "stop", "end")
    assert text() == (TEXTS["第一："].encode()[:16].decode(errors="ignore"), "length", "length")


def test_a_long_prompt_keeps_its_end_if_asked_so_that_the_text_fits(url):
    def ask_long(count):
        return ask(url, prompt="b" * count + "say ", max_tokens=60, keep_last=True, seed=1).json()

    answer = ask_long(508)
    assert answer["usage"] == {"prompt_tokens": 452, "completion_tokens": 60, "total_tokens": 512}
    assert answer["choices"] == ask_long(9000)["choices"]
    (short,) = ask(url, prompt="b" * 448 + "say ", max_tokens=60, seed=1).json()["choices"]
    assert answer["choices"] == [short]


def test_the_prompt_that_is_kept_is_what_echo_returns(url):
    kept = "b" * 448 + "say "
    for prompt in ("b" * 9000 + "say ", [98] * 9000 + [*b"say "]):
        body = {"prompt": prompt, "max_tokens": 60, "keep_last": True, "seed": 1, "echo": True, "logprobs": 0}
        (choice,) = ask(url, **body).json()["choices"]
        found = choice["logprobs"]
        assert choice["text"].startswith(kept) and "".join(found["tokens"]) == choice["text"]
        assert found["text_offset"][:452] == list(range(452))
        (short,) = ask(url, **{**body, "prompt": kept}).json()["choices"]
        assert choice == short


def test_more_texts_than_the_queue_holds_are_refused_before_they_are_tokenized(monkeypatch):
    with running(byte_model({"ab": "x" * 400}, pace=0.02, max_rows=1, max_queue=2)) as url:
        with httpx.stream(
            "POST", f"{url}/v1/completions", json={"prompt": "ab", "max_tokens": 400, "stream": True}
        ) as one:
            lines = one.iter_lines()  # which ends the stream when it is deleted
            next(lines)
            with httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "ab", "n": 2, "stream": True}):
                monkeypatch.setattr("hanmo.server.completions.read_prompt", None)
                full, never = ask(url, prompt="ab"), ask(url, prompt=["ab", "ab"], n=2)
                monkeypatch.undo()
                beams = ask(url, prompt="ab", beams=2, max_tokens=2), ask(url, prompt=["ab"] * 257, beams=2)
    assert full.status_code == 429 and "2 rows are waiting and 1 more do not fit the queue of 2" in full.text
    assert beams[0].status_code == 200  # which the scheduler does not run
    assert beams[1].status_code == 400 and "257 texts at once do not fit the queue of 256" in beams[1].text
    assert never.status_code == 400 and "4 rows at once do not fit the queue of 2" in never.text


def test_an_encoder_decoder_answers_its_source(tmp_path):
    loaded = small("t5.1.1", tmp_path)
    with running(Served("答", loaded, "toy", Scheduler(loaded.engine))) as url:
        body = {"model": "答", "prompt": "今天天气", "max_tokens": 6, "seed": 5, "n": 2, "top_k": 100, "logprobs": 1}
        choices = ask(url, **body).json()["choices"]
        assert joined(streamed(url, **body)) == choices
        expected = loaded.write_detailed("今天天气", max_tokens=6, max_chars=None, stop=None, seed=5, n=2, top_k=100)
        assert [each["text"] for each in choices] == [each.text for each in expected]
        assert "echo is for a text that continues its prompt" in ask(url, **body, echo=True).json()["error"]["message"]
        described = httpx.get(f"{url}/v1/models/答").json()
        assert described["abilities"] == ["completions", "answers", "embeddings", "fill"]
        assert described["mask"] == "[MASK]"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": 5}, "prompt", "prompt is 5: input should be a valid"),
        ({}, "prompt", "prompt is missing"),
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": "ab\0"}, None, r"U+0000 at position 2"),
        ({"prompt": [97, 300]}, "prompt", "prompt holds id 300; the vocabulary has ids 0 to 256"),
        ({"prompt": "a" * 600}, None, "the prompt has 600 tokens, the model knows 512 positions"),
        ({"prompt": "a" * 510, "max_tokens": 3}, "prompt", "has 510 tokens and max_tokens is 3, the model knows 512"),
        ({"prompt": "a", "suffix": "b"}, None, "suffix is not supported"),
        ({"prompt": "a", "presence_penalty": 0.5}, None, "give repetition_penalty"),
        ({"prompt": "a", "n": 0}, "n", "n is 0: input should be greater than or equal to 1"),
        ({"prompt": "a", "n": "2"}, "n", "n is '2': input should be a valid integer"),
        ({"prompt": "a", "n": 3, "best_of": 2}, None, "best_of is 2, n is 3"),
        ({"prompt": "a", "best_of": 2, "stream": True}, None, "best_of cannot be streamed"),
        ({"prompt": "a", "seed": -1}, "seed", "seed is -1"),
        ({"prompt": "a", "temperature": -0.1}, "temperature", "temperature is -0.1"),
        ({"prompt": "a", "top_p": 0}, "top_p", "top_p is 0"),
        ({"prompt": "a", "logit_bias": {"257": 1}}, "logit_bias", "logit_bias holds '257'; expected ids from 0 to 256"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "less than or equal to 100"),
        ({"prompt": "a", "logit_bias": {"01": 1}}, "logit_bias", "logit_bias holds '01'; expected ids from 0 to 256"),
        ({"prompt": "a", "repetition_penalty": 1e-300}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"prompt": "a", "stop": ""}, "stop", "stop is ''"),
        ({"prompt": "a", "stream_options": {}}, None, "stream_options is for a stream"),
        ({"prompt": "a", "min_chars": 3}, None, "min_chars is for stop_at_sentence"),
        ({"prompt": "a", "beams": 2, "seed": 1}, None, "beams cannot be combined with seed"),
        ({"prompt": "a", "topk": 5}, "topk", "'topk' is no field of this request; it has model"),
        ({"prompt": ["a"] * 200, "n": 2}, None, "400 rows at once do not fit the queue of 256"),
    ],
)
def test_what_is_wrong_is_named(url, body, param, message):
    answer = ask(url, **body)
    told = answer.json()["error"]
    assert answer.status_code == 400 and told["type"] == "invalid_request_error"
    assert message in told["message"] and told["param"] == param


def test_a_field_that_is_given_twice_is_refused(url):
    for body in (b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "a", "logit_bias": {"1": 1, "1": 2}}'):
        answer = httpx.post(f"{url}/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "twice" in answer.json()["error"]["message"]


def test_errors_are_those_of_the_openai_client(client):
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served; served are 字节, hanmo-small"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="these models continue texts and were given no chat template"):
        client.chat.completions.create(model="字节", messages=[{"role": "user", "content": "你好"}])
    with pytest.raises(openai.BadRequestError, match="is opened for generation alone"):
        client.embeddings.create(model="字节", input="a")


def test_a_model_that_fails_ends_a_stream_with_an_error_and_goes_on(monkeypatch):
    model = byte_model(TEXTS)
    with running(model) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        monkeypatch.setattr(model.pipeline.engine, "scores", lambda ids: np.full(257, np.nan, np.float32))
        with pytest.raises(openai.APIError, match="257 of the model's 257 scores for the next id are NaN"):
            list(client.completions.create(model="字节", prompt="ab", stream=True))
        with pytest.raises(openai.InternalServerError, match="are NaN or infinite"):
            client.completions.create(model="字节", prompt="ab")
        monkeypatch.setattr(model.pipeline.engine, "scores", lambda ids: 1 // 0)
        with pytest.raises(openai.APIError, match="the model failed; the server's log says why"):
            list(client.completions.create(model="字节", prompt="ab", stream=True))
        with pytest.raises(openai.InternalServerError, match="the model failed"):
            client.completions.create(model="字节", prompt="ab")
        monkeypatch.undo()
        assert client.completions.create(model="字节", prompt="say ", max_tokens=3).choices[0].text == "one"


@pytest.mark.skipif(shutil.which("curl") is None, reason="looked for curl on PATH; it is not there")
def test_curl_gets_the_same(url):
    def curl(body):
        command = [
            "curl",
            "-sN",
            f"{url}/v1/completions",
            "-H",
            "Content-Type: application/json",
            "-d",
            json.dumps(body),
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    body = {"model": "字节", "prompt": "say ", "max_tokens": 7}
    assert json.loads(curl(body))["choices"][0]["text"] == "one two"
    lines = curl({**body, "stream": True}).splitlines()
    pieces = [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-2] if line]
    assert "".join(pieces) == "one two" and lines[-2:] == ["data: [DONE]", ""]
