"""WebServing answers requests with JSON, as bert4keras does."""

import json
import threading
from http.server import HTTPServer
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from hanmo.compat.bert4keras.snippets import WebServing


@pytest.fixture
def ask():
    web = WebServing(host="127.0.0.1", port=0)
    web.route("/repeat", lambda text, n=2: [text] * n, {"text": (None, True), "n": (int, False)})
    web.route("/post", lambda text: text, {"text": (None, True)}, method="POST")
    server = HTTPServer((web.host, web.port), web.handler())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(path, data=None, size=None):
        headers = {} if size is None else {"Content-Length": size}
        request = Request(f"http://127.0.0.1:{server.server_port}{path}", data=data, headers=headers)
        with urlopen(request, timeout=10) as response:
            assert response.headers["Content-Type"] == "application/json; charset=utf-8"
            return json.loads(response.read())

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


def test_arguments_are_converted_and_may_be_left_out(ask, capsys):
    assert ask(f"/repeat?text={quote('天')}&n=3") == {"code": 0, "desc": "succeeded", "data": ["天"] * 3}
    assert ask(f"/repeat?text={quote('天')}")["data"] == ["天"] * 2
    assert ask("/post", data=f"text={quote('气')}".encode())["data"] == "气"


def test_what_is_wrong_is_told_with_its_code(ask, capsys):
    assert ask("/repeat?n=3") == {"code": 1, "desc": 'lack of "text" argument', "data": {}}
    answer = ask("/repeat?text=a&n=x")
    assert answer["code"] == 2 and "invalid literal" in answer["desc"]
    for path, data in (("/nothing", None), ("/post?text=a", None), ("/repeat", b"text=a")):
        with pytest.raises(HTTPError, match="404"):
            ask(path, data)
    for size in ("1048577", "-1", "x"):
        with pytest.raises(HTTPError, match="413"):
            ask("/post", data=b"", size=size)
