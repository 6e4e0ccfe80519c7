"""/v1/chat/completions, where a template is given."""

import httpx
import openai
import pytest
from toy_server import byte_model, running

from hanmo.errors import ConfigError
from hanmo.server.chat import ChatTemplate

TEMPLATE = """{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}
{% for message in messages %}
{{ message.role[0] }}：{{ message.content }}
{% endfor %}
a："""
USER, ASSISTANT = "u：你好\na：", "你好！👋有事吗？"


@pytest.fixture(scope="module")
def url():
    with running(byte_model({USER: ASSISTANT}), template=ChatTemplate(TEMPLATE)) as url:
        yield url


def test_the_openai_client_gets_an_answer_and_its_pieces(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked = {"model": "字节", "messages": [{"role": "user", "content": "你好"}]}
        answer = client.chat.completions.create(**asked)
        assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")
        assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", ASSISTANT)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == ASSISTANT
        assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
        short = client.chat.completions.create(**asked, max_completion_tokens=6, n=2)
        assert [each.message.content for each in short.choices] == ["你好", "你好"]
        stopped = client.chat.completions.create(**asked, stop="👋", extra_body={"max_chars": 9})
        assert stopped.choices[0].message.content == "你好！"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is []"),
        ([{"role": "user"}], "messages.0.content is missing"),
        ([{"role": "user", "content": "a", "x": 1}], "'messages.0.x' is no field of this request"),
        ([{"role": "user", "content": "a<|endoftext|>b"}], "message 0 holds the special token <|endoftext|>"),
        ([{"role": "tool", "content": "a"}], "refuses the messages: no tools"),
        ([{"role": "<|endoftext|>", "content": "a"}], "input should be 'developer', 'system'"),
        ([{"role": "user", "content": "a" * 600}], "tokens, the model knows 512 positions"),
    ],
)
def test_what_is_wrong_is_named(url, messages, message):
    answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400 and message.lower() in answer.json()["error"]["message"].lower()


def test_a_wrong_template_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"the chat template is wrong: .*endfor"):
        ChatTemplate("{% for message in messages %}")
    with pytest.raises(ConfigError, match="the chat template is wrong"):
        ChatTemplate("{{ message | nothing }}")
