"""/metrics and /health."""

import threading

import httpx
from prometheus_client.parser import text_string_to_metric_families
from toy_server import byte_model, running, wait_for


def numbers(url, **how):
    """Return {name: value} of the samples, by their labels."""
    text = httpx.get(f"{url}/metrics", **how).text
    families = list(text_string_to_metric_families(text))
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_every_number_of_the_metrics_counts_what_it_says():
    with running(byte_model({"ab": "xyz"}, cache_ids=900)) as url:
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "ab", "n": 2}).status_code == 200
        found = {name: value for name, value in numbers(url).items() if not name[0].endswith(("_bucket", "_created"))}
    between = found.pop(("hanmo_time_between_tokens_seconds_sum", "字节"))
    first = found.pop(("hanmo_time_to_first_token_seconds_sum", "字节"))
    assert 0 < between and 0 < first
    assert found == {
        ("hanmo_requests_total", "completions", "200"): 1,
        ("hanmo_time_to_first_token_seconds_count", "字节"): 2,
        ("hanmo_time_between_tokens_seconds_count", "字节"): 6,  # three characters and the end
        ("hanmo_rows_waiting", "字节"): 0,
        ("hanmo_rows_running", "字节"): 0,
        ("hanmo_cached_tokens", "字节"): 0,
        ("hanmo_cache_tokens", "字节"): 900,
        ("hanmo_tokens_total", "字节"): 8,
        ("hanmo_prompt_tokens_total", "字节"): 2,
        ("hanmo_steps_total", "字节"): 4,
    }


def test_rows_that_run_and_wait_are_counted():
    model = byte_model({"ab": "x" * 400}, pace=0.02, max_rows=2)
    with running(model) as url, httpx.Client(base_url=url) as client:
        body = {"prompt": "ab", "n": 3, "max_tokens": 400, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # which ends the stream when it is deleted
            next(lines)
            found = numbers(url)
        assert (found["hanmo_rows_running", "字节"], found["hanmo_rows_waiting", "字节"]) == (2, 1)
        assert found["hanmo_cached_tokens", "字节"] >= 4


def test_requests_that_are_refused_are_counted():
    key = {"headers": {"authorization": "Bearer sk"}}
    with running(byte_model(), keys=["sk"], max_requests=1, hosts=[]) as url:
        httpx.get(f"{url}/v1/models")
        httpx.get(f"{url}/v1/models", headers={"host": "evil.example"})
        httpx.get(f"{url}/v1/nothing", **key)
        running.server._state.active += 1
        httpx.get(f"{url}/v1/models", **key)
        running.server._state.draining = True
        httpx.get(f"{url}/v1/models", **key)
        found = numbers(url, **key)
        running.server._state.active -= 1
    counted = {name[1:]: value for name, value in found.items() if name[0] == "hanmo_requests_total"}
    assert counted == {("none", status): 1 for status in ("401", "403", "404", "429", "503")}


def test_health_tells_of_a_scheduler_that_ended(monkeypatch):
    model = byte_model()
    with running(model) as url:
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
        monkeypatch.setattr(model.scheduler._batch, "admit", lambda: 1 // 0)
        monkeypatch.setattr(model.scheduler._batch, "fail", lambda error: 1 // 0)
        with httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "ab", "stream": True}):
            wait_for(lambda: not model.scheduler.alive)
            answer = httpx.get(f"{url}/health")
            assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
            refused = httpx.post(f"{url}/v1/completions", json={"prompt": "ab"})
            assert refused.status_code == 503
