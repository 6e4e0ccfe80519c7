"""bert4keras's WebServing: functions as JSON over HTTP, one request at a time, for trying a script out."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Arguments = dict[str, tuple[Callable[[str], Any] | None, bool]]
MAX_BODY = 1 << 20


class WebServing:
    """Serves functions at paths; `start` answers until it is interrupted.

    Answers are {"code": 0, "desc": "succeeded", "data": …}; code 1 is a missing argument, 2 an error.
    server: ignored.
    """

    def __init__(self, host: str = "0.0.0.0", port: int = 8000, server: str = "paste") -> None:
        self.host, self.port = host, port
        self.routes: dict[tuple[str, str], Callable[[dict[str, str]], dict[str, Any]]] = {}

    def route(self, path: str, func: Callable[..., Any], arguments: Arguments, method: str = "GET") -> None:
        """Serve func at a path; arguments: name → (conversion of the text or None, whether it is required)."""
        self.routes[method.upper(), path] = self.wraps(func, arguments, method)

    def wraps(
        self, func: Callable[..., Any], arguments: Arguments, method: str = "GET"
    ) -> Callable[[dict[str, str]], dict[str, Any]]:
        """Return a function from a query to an answer."""

        def answer(query: dict[str, str]) -> dict[str, Any]:
            try:
                for name, (_, required) in arguments.items():
                    if required and name not in query:
                        return {"code": 1, "desc": f'lack of "{name}" argument', "data": {}}
                given = {
                    name: (convert or str)(query[name]) for name, (convert, _) in arguments.items() if name in query
                }
                return {"code": 0, "desc": "succeeded", "data": func(**given)}
            except Exception as error:  # the script's own: told to the client, as in the original
                return {"code": 2, "desc": str(error), "data": {}}

        return answer

    def start(self) -> None:
        with HTTPServer((self.host, self.port), self.handler()) as server:
            print(f"http://{self.host}:{server.server_port}")
            server.serve_forever()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the class that answers requests to the routes."""
        routes = self.routes

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(urlsplit(self.path).query)

            def do_POST(self) -> None:
                size = self.headers.get("Content-Length", "")
                if not size.isdecimal() or int(size) > MAX_BODY:
                    self.send_error(413)
                    return
                self._answer(self.rfile.read(int(size)).decode("utf-8", "replace"))

            def _answer(self, query: str) -> None:
                found = routes.get((self.command, urlsplit(self.path).path))
                if found is None:
                    self.send_error(404)
                    return
                body = json.dumps(found(dict(parse_qsl(query))), ensure_ascii=False).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
