"""Requests made from the OpenAPI document, right and wrong: the answer is never a failure of the server."""

import json
import math

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_server import byte_model, running, task_folder

from hanmo.server.chat import ChatTemplate
from hanmo.server.models import open_served
from hanmo.server.openapi import document

PATHS = {path: at["post"] for path, at in document("")["paths"].items() if "post" in at}
SCHEMAS = document("")["components"]["schemas"]

GOOD = {
    "/v1/completions": {"model": "字节", "prompt": "ab"},
    "/v1/chat/completions": {"model": "字节", "messages": [{"role": "user", "content": "ab"}]},
}
TEXTS = st.text(max_size=8) | st.sampled_from(["今[MASK]气", "ab", "[MASK]", "<extra_id_0>", "天" * 60, "\0", " \n"])
LARGE = [2**31, 2**63, 2**64, -(2**70), 1e308, 5e-324, math.nan, math.inf]
NUMBERS = st.integers(-3, 40) | st.floats(-2, 200) | st.sampled_from(LARGE)
BODIES = [
    *(b'{"prompt"', b"[1]", b'"x"', b"null", b'{"prompt": NaN}', b"[" * 5000, b'{"input":' * 5000, b"\xff\xfe{\0}\0"),
    *(b'{"model": "\xe7\xbc\x96", "input": %b}' % each for each in (b"1e999", b"9" * 5000, b'"a", "input": "b"')),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=3),
    max_leaves=6,
)


def values(schema):
    """Make values that a JSON schema allows, nearly all of them."""
    if "$ref" in schema:
        return values(SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of(*map(values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "array":
        return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    if kind == "object" and "properties" in schema:
        fields = {name: values(each) for name, each in schema["properties"].items()}
        needed = {name: fields.pop(name) for name in schema.get("required", ())}
        return st.fixed_dictionaries(needed, optional=fields)
    if kind == "object":
        return st.dictionaries(st.integers(0, 300).map(str) | TEXTS, ANYTHING, max_size=3)
    least, most = schema.get("minimum", 0), min(schema.get("maximum", 40), 40)
    simple = {"string": TEXTS, "boolean": st.booleans(), "null": st.none(), None: ANYTHING}
    simple |= {"integer": st.integers(least, most), "number": st.floats(least, most)}
    return simple[kind]


@st.composite
def bodies(draw, schema):
    """Make a few fields of a request, of which some may be anything."""
    body = dict(draw(values(schema)))
    if len(body) > 6:
        kept = draw(st.sets(st.sampled_from(sorted(body)), max_size=6)) | set(schema.get("required", ()))
        body = {name: value for name, value in body.items() if name in kept}
    body["model"] = draw(st.sampled_from(["字节", "编", "无"]))
    if draw(st.booleans()):
        body[draw(st.sampled_from(sorted(schema["properties"])) | TEXTS)] = draw(ANYTHING)
    return body


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    task = open_served("编", task_folder(tmp_path_factory.mktemp("task")))
    with (
        running(byte_model(positions=20), task, template=ChatTemplate("{{ messages[0].content }}")) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def check(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        told = answer.json()["error"]
        assert told["message"] and set(told) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] if "chat" in path else []) for path in PATHS]
)
def test_no_request_makes_the_server_fail(client, path):
    (content,) = PATHS[path]["requestBody"]["content"].values()
    schema = SCHEMAS[content["schema"]["$ref"].rpartition("/")[2]]
    good, codes = GOOD.get(path, {"model": "编", "input": "今天"}), set()

    @settings(max_examples=40)
    @given(bodies(schema), st.sampled_from(["字节", "编", "无"]))
    @example(good, "编")
    def run(body, name):
        text = json.dumps(body)  # NaN and half surrogates as Python writes them
        answer = client.post(
            path.replace("{name}", name), content=text.encode(), headers={"content-type": "application/json"}
        )
        check(answer)
        codes.add(answer.status_code)

    run()
    assert len(codes) > 1
    assert client.post(path.replace("{name}", "编"), json=good).status_code == (400 if path == "/v1/fill" else 200)


@settings(max_examples=40)
@given(
    st.sampled_from([*document("")["paths"], "/openapi.json", "/static/page.js", "/v1", "/", "/v1/%ff", "/v1/fill/"]),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]),
    st.binary(max_size=30) | st.sampled_from(BODIES),
    st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain", "", "a" * 300])
    | st.text("abcjnopsu-/;=*\"' ", max_size=20).map("application/json; charset={}".format),
    st.dictionaries(
        st.sampled_from(["authorization", "content-encoding", "accept", "origin", "range", "if-none-match", "expect"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(str.strip),
        max_size=3,
    ),
)
def test_no_bytes_make_the_server_fail(client, path, method, content, kind, others):
    headers = {**others, "content-type": kind.strip()}
    answer = client.request(method, path.replace("{name}", "编"), content=content, headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and method != "HEAD":
        check(answer)


@pytest.mark.parametrize("path", ["/", "/static/page.js"])
def test_a_malformed_range_of_the_page_gives_all_of_it(client, path):
    answer = client.get(path, headers={"range": "x"})
    assert answer.status_code == 200 and answer.content == client.get(path).content


def test_the_document_names_every_path_and_its_fields(client):
    found = client.get("/openapi.json").json()
    assert found == document("") and found["openapi"] == "3.1.0"
    assert set(found["paths"]) >= {"/v1/completions", "/v1/embeddings", "/v1/fill", "/v1/models", "/health", "/metrics"}
    fields = found["components"]["schemas"]["Completion"]["properties"]
    assert {"prompt", "n", "logprobs", "stop_at_sentence", "beams", "stream_options"} <= set(fields)
    assert fields["n"] == {"default": 1, "description": "Texts for each prompt.", "maximum": 128, "minimum": 1,
                           "title": "N", "type": "integer"}  # fmt: skip


KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": float, "null": type(None)}


def fits(schema, value):
    """Tell whether a value is as a schema says, of those that the document has for answers."""
    kind = schema.get("type", list(KINDS))
    if not isinstance(value, tuple(KINDS[each] for each in ([kind] if isinstance(kind, str) else kind))):
        return False
    if isinstance(value, list):
        return all(fits(schema.get("items", {}), each) for each in value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        known = set(value) <= set(properties) or not properties
        required = set(schema.get("required", ())) <= set(value)
        return known and required and all(fits(properties.get(name, {}), each) for name, each in value.items())
    return True


def test_choices_of_beams_are_as_the_document_says(client):
    answer = client.post("/v1/completions", json={**GOOD["/v1/completions"], "beams": 2}).json()
    content = PATHS["/v1/completions"]["responses"]["200"]["content"]
    assert "score" in answer["choices"][0] and fits(content["application/json"]["schema"], answer)


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/v1/models/{name}", "/health"])
def test_answers_are_as_the_document_says(client, path):
    operation = document("")["paths"][path]
    address = path.replace("{name}", "编")
    body = GOOD.get(path, {"model": "编", "input": "今天"})
    answer = client.post(address, json=body) if "post" in operation else client.get(address)
    if path == "/v1/fill":  # the task has no head for it
        schema = SCHEMAS["Error"]
    else:
        assert answer.status_code == 200
        schema = next(iter(operation.values()))["responses"]["200"]["content"]["application/json"]["schema"]
    assert fits(schema, answer.json()) and schema["required"]
