"""The ASGI application: paths, errors, middleware."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from hanmo.errors import HanmoError
from hanmo.server.chat import ChatTemplate
from hanmo.server.completions import chat_completions, completions
from hanmo.server.encoders import embeddings, fill, tasks
from hanmo.server.errors import RequestError, as_request_error
from hanmo.server.metrics import CountRequests
from hanmo.server.models import Models, Served
from hanmo.server.openapi import document
from hanmo.server.security import Admission, RequireHost, RequireKey, check_keys
from hanmo.server.state import State, state_of

PAGE = Path(__file__).parent / "page"
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


def make_app(
    models: Sequence[Served],
    *,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    root_path: str = "",
    max_requests: int = 512,
    max_body: int = 16 << 20,
    template: ChatTemplate | None = None,
) -> Starlette:
    """Make the application that serves these models, which are closed at its end.

    keys: API keys; without any, every request is answered.   origins: whose pages may send requests; "*" is every one.
    hosts: names to which requests may be sent, beside those of this machine; None is every one.
    root_path: path prefix under which a proxy forwards requests, whether it removes the prefix or not.
    max_requests: that are answered at once.   max_body: bytes of a request's body.   template: of dialogues.
    Raises ConfigError for a key that cannot be one.
    """
    check_keys(keys)
    named = Models({model.name: model for model in models})
    state = State(named, max_requests=max_requests, max_body=max_body, template=template)
    key, admission, complete = Middleware(RequireKey, keys), Middleware(Admission, state), Middleware(_WithoutRanges)
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]
    endpoints = [
        Route("/completions", completions, methods=["POST"]),
        Route("/chat/completions", chat_completions, methods=["POST"]),
        Route("/embeddings", embeddings, methods=["POST"]),
        Route("/fill", fill, methods=["POST"]),
        Route("/tasks/{name:path}", tasks, methods=["POST"]),
        Route("/models", list_models),
        Route("/models/{name:path}", describe_model),
    ]
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics, middleware=[key]),
            Route("/openapi.json", openapi),
            Route("/", page, middleware=[complete]),
            Mount("/static", _Files(directory=PAGE), middleware=[complete]),
            Mount("/v1", Router(endpoints, redirect_slashes=False), middleware=[key, admission]),
        ],
        middleware=[
            Middleware(_RootPath, root_path.rstrip("/")),
            Middleware(CountRequests, state.metrics),
            *([] if hosts is None else [Middleware(RequireHost, hosts)]),
            *(cors if origins else []),
        ],
        exception_handlers={HanmoError: _refuse, HTTPException: _refuse, ClientDisconnect: _left, Exception: _refuse},
        lifespan=_closing,
    )
    app.router.redirect_slashes = False  # to addresses that a proxy may not know
    app.state.hanmo = state
    return app


async def health(request: Request) -> Response:
    """Tell whether requests are taken, and whether every scheduler runs."""
    state = state_of(request)
    ended = any(model.scheduler is not None and not model.scheduler.alive for model in state.models.values())
    status = "draining" if state.draining else "failed" if ended else "ok"
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


async def page(request: Request) -> Response:
    """Return the page to write with; its addresses are relative, and nothing comes from elsewhere."""
    return FileResponse(PAGE / "index.html", headers=_HEADERS)


async def metrics(request: Request) -> Response:
    """Return numbers for Prometheus."""
    return Response(state_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return JSONResponse(document(request.scope.get("root_path", "")))


async def list_models(request: Request) -> Response:
    """List the models."""
    found = [_described(model) for model in state_of(request).models.values()]
    return JSONResponse({"object": "list", "data": found})


async def describe_model(request: Request) -> Response:
    """Describe one model."""
    return JSONResponse(_described(state_of(request).models.find(request.path_params["name"])))


def _described(model: Served) -> dict[str, object]:
    config = model.pipeline.config
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "hanmo",
        "family": config.family,
        "max_model_len": config.main.context,
        "abilities": model.abilities,
        "mask": model.mask,
    }


async def _refuse(request: Request, error: Exception) -> Response:
    headers = None
    if isinstance(error, HTTPException):
        headers = error.headers
        error = RequestError(f"{request.method} {request.scope['path']}: {error.detail}", status=error.status_code)
    elif not isinstance(error, HanmoError):  # a bug; Starlette raises it again for the log
        error = RequestError("the server failed; its log says why", status=500)
    return as_request_error(error).response(headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response


class _WithoutRanges:
    """Middleware: ignores Range, as servers may; files would answer a malformed one with plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope.get("headers", ()) if header[0] != b"range"]
        await self._app({**scope, "headers": headers}, receive, send)


@asynccontextmanager
async def _closing(app: Starlette) -> AsyncIterator[None]:
    yield
    app.state.hanmo.close()


class _RootPath:
    """Middleware: gives every path the prefix, which a proxy may have removed, as ASGI has it.

    The prefix alone is sent on to that of the page, to which the page's addresses are relative.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root_path and scope["type"] == "http":
            path = scope["path"]
            if path == self._root_path:
                await RedirectResponse(f"{self._root_path}/")(scope, receive, send)
                return
            path = path if path.startswith(f"{self._root_path}/") else self._root_path + path
            scope = {**scope, "root_path": self._root_path, "path": path}
        await self._app(scope, receive, send)
