"""Keys, origins and sizes."""

import asyncio
import hmac
import socket
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_pipeline import small
from toy_server import byte_model, running, wait_for

from hanmo.errors import ConfigError
from hanmo.generate.scheduler import Scheduler
from hanmo.server import completions, protocol
from hanmo.server.app import make_app
from hanmo.server.models import Served
from hanmo.server.run import bind
from hanmo.server.security import check_host

KEYS = ["sk-one", "钥匙"]


@pytest.fixture(scope="module")
def url():
    with running(byte_model(), keys=KEYS, origins=["https://a.example"], max_body=2000) as url:
        yield url


def send(url, path="/v1/models", method="GET", **how):
    return httpx.request(method, url + path, **how)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/v1/nothing", "/metrics"])
@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer sk-two", "Bearer sk-on", "Basic sk-one", "sk-one", "Bearer é"]
)
def test_without_a_key_nothing_is_answered(url, path, header):
    answer = send(url, path, headers={} if header is None else {"authorization": header.encode()})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(url, key):
    for path in ("/v1/models", "/metrics"):
        assert send(url, path, headers={"authorization": f"Bearer {key}".encode()}).status_code == 200


def test_the_page_has_the_same_policy_at_both_of_its_addresses(url):
    first, second = send(url, "/"), send(url, "/static/index.html")
    assert first.text == second.text and "default-src 'self'" in first.headers["content-security-policy"]
    for name in ("content-security-policy", "x-content-type-options"):
        assert first.headers[name] == second.headers[name] == send(url, "/static/page.js").headers[name]


def test_health_and_the_document_need_no_key(url):
    assert send(url, "/health").json() == {"status": "ok"}
    assert send(url, "/openapi.json").status_code == 200


def test_keys_are_compared_in_constant_time_and_all_of_them(url, monkeypatch):
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(other) or compare(one, other))
    send(url, headers={"authorization": "Bearer sk-one"})
    assert compared == [key.encode() for key in KEYS]


def test_a_body_that_is_too_large_or_no_json_is_refused_before_it_is_read(url):
    key = {"authorization": "Bearer sk-one"}
    large = b'{"prompt": "' + b"a" * 3000 + b'"}'
    for content in (large, iter([large])):  # with and without a Content-Length
        answer = send(
            url, "/v1/completions", "POST", content=content, headers={**key, "content-type": "application/json"}
        )
        assert answer.status_code == 413 and "more than 2,000 bytes" in answer.json()["error"]["message"]
    answer = send(url, "/v1/completions", "POST", data={"prompt": "a"}, headers=key)
    assert answer.status_code == 415 and "expected application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("flood", [b"X: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
def test_headers_are_bounded(url, flood):
    place, sent = urlsplit(url), 0
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        with suppress(OSError):
            while sent < 5_000_000:
                connection.sendall(flood)
                sent += len(flood)
    assert sent < 5_000_000


def test_the_system_holds_little_that_a_client_has_not_read():
    with bind("127.0.0.1", 0) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            size = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert size in (64 << 10, 128 << 10)  # Linux doubles it


def test_headers_that_do_not_come_end_the_connection(url, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    place = urlsplit(url)
    with httpx.Client(base_url=url) as client, socket.create_connection((place.hostname, place.port)) as connection:
        assert client.get("/health").status_code == 200
        connection.settimeout(20)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        assert connection.recv(100) == b""
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"content-type": "application/json; charset=utf-16"}, "charset is 'utf-16'; expected UTF-8"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "Content-Encoding is 'gzip'; send"),
        ({"content-type": "text/json"}, "Content-Type is 'text/json'; expected application/json"),
    ],
)
def test_a_body_that_would_be_read_otherwise_than_it_was_meant_is_refused(url, headers, message):
    key = {"authorization": "Bearer sk-one"}
    answer = send(url, "/v1/completions", "POST", content=b'{"prompt": "a"}', headers={**key, **headers})
    assert answer.status_code == 415 and message in answer.json()["error"]["message"]
    plain = {**key, "content-type": 'Application/JSON; charset="UTF-8"'}
    assert send(url, "/v1/completions", "POST", content=b'{"prompt": "a"}', headers=plain).status_code == 200


def test_bodies_that_arrive_are_bounded_together():
    with running(byte_model({"ab": "x" * 300}, pace=0.02), max_body=2000) as url, ExitStack() as opened:
        state, place = running.server._state, urlsplit(url)
        body = {"prompt": "ab", "user": "u" * 1900, "max_tokens": 300, "stream": True}
        client = opened.enter_context(httpx.Client(base_url=url))
        for _ in range(5):  # these are parsed and count no longer
            opened.enter_context(client.stream("POST", "/v1/completions", json=body))
        assert state.active == 5 and state.bodies == 0
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for _ in range(4):
            connection = opened.enter_context(socket.create_connection((place.hostname, place.port)))
            connection.sendall(head + b"Content-Length: 2000\r\n\r\n" + b" " * 1900)
        wait_for(lambda: state.bodies == 4 * 1900)
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 429 and "too many large requests at once" in answer.text
        opened.close()
        wait_for(lambda: not state.bodies)
        assert send(url, "/v1/completions", "POST", json={**body, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(("family", "counts"), [("gpt2_ml", False), ("t5.1.1", True)])
def test_a_body_counts_until_the_end_if_no_number_of_positions_limits_the_prompt(tmp_path, monkeypatch, family, counts):
    loaded, start, seen = small(family, tmp_path), completions._start, []
    monkeypatch.setattr(
        completions, "_start", lambda job, state, *others: seen.append(state.bodies) or start(job, state, *others)
    )
    with running(Served("小", loaded, "toy", Scheduler(loaded.engine))) as url:
        assert send(url, "/v1/completions", "POST", json={"prompt": "今天", "max_tokens": 1}).status_code == 200
        assert (seen[0] > 0) == counts
        wait_for(lambda: not running.server._state.bodies)


def test_pages_of_listed_origins_alone_may_ask(url):
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
        answer = send(url, "/v1/completions", "OPTIONS", headers={"origin": origin, **asking})
        assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
        assert (answer.status_code == 200) == allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machine_needs_no_key(host):
    check_host(host, [], anonymous=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "server.example"])
def test_others_need_a_key_unless_told(host):
    check_host(host, ["key"], anonymous=False)
    check_host(host, [], anonymous=True)
    with pytest.raises(ConfigError, match=f"host is '{host}', which other machines can reach, and there is no key"):
        check_host(host, [], anonymous=False)


@pytest.mark.parametrize("key", ["", " ", "sk one", "sk\n"])
def test_a_key_that_is_empty_or_cannot_be_sent_is_refused(key):
    with pytest.raises(ConfigError, match="api_key is empty or holds white space"):
        make_app([], keys=["sk", key])


@pytest.fixture(scope="module")
def local():
    with running(byte_model(), hosts=["Pages.example"]) as url:
        yield url


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.3", "[::1]:80", "pages.example:443", "LOCALHOST"])
def test_this_machine_and_listed_hosts_are_answered(local, host):
    for path in ("/", "/v1/models"):
        assert send(local, path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "", "0.0.0.0", "[::1", "8.8.8.8", "é"])
def test_a_page_whose_name_resolves_to_this_machine_gets_no_answer(local, host):
    for path in ("/", "/v1/models", "/metrics", "/static/page.js"):
        answer = send(local, path, headers={"host": host.encode()})
        assert answer.status_code == 403 and "; start it with --allowed-host" in answer.json()["error"]["message"]
    assert send(local, "/health", headers={"host": host.encode()}).status_code == 200  # by a load balancer


@settings(max_examples=60)
@given(st.binary(max_size=12), st.binary(max_size=12))
def test_no_bytes_of_a_query_and_a_host_make_the_server_fail(url, local, query, host):
    query, host = (bytes(set(each) - set(b"\0\r\n \t#")) for each in (query, host))
    for place in map(urlsplit, (url, local)):
        with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
            connection.sendall(b"GET /nothing?\xff%b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (query, host))
            assert connection.recv(100).split()[1] in (b"400", b"403", b"404")


def test_a_query_that_another_server_lets_pass_is_not_decoded():
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/nothing", "query_string": b"\xff", "headers": []}
    asyncio.run(make_app([])(scope, None, send))
    assert sent[0]["status"] == 404
