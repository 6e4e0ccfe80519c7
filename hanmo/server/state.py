"""What the endpoints share: the models, the threads, what is counted; bodies of bounded size, clients that leave."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from typing import Any, ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from hanmo.server.chat import ChatTemplate
from hanmo.server.errors import RequestError
from hanmo.server.metrics import Metrics
from hanmo.server.models import Models

P = ParamSpec("P")
T = TypeVar("T")
_BODY_SECONDS = 60


@dataclass(eq=False)
class State:
    """Of one application.

    max_body: bytes of a request's body.   max_requests: that are answered at once.   draining: no new ones are taken.
    template: of dialogues.   active: requests that are being answered.
    bodies: bytes of the bodies that are not yet released.
    """

    models: Models
    max_requests: int
    max_body: int = 16 << 20
    template: ChatTemplate | None = None
    draining: bool = False
    active: int = 0
    bodies: int = 0
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.models)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="hanmo-requests")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that takes long, such as parsing and tokenizing, in a thread."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def answer(self, frame: Mapping[str, Any], name: str, items: Iterable[Any]) -> Response:
        """Return the answer of `to_json_list`."""
        return Response(await self.run(to_json_list, frame, name, items), media_type="application/json")

    def release_body(self, scope: Scope) -> None:
        """No longer count the bytes of a request's body."""
        self.bodies -= scope.pop("hanmo.body", 0)

    def close(self) -> None:
        """End all threads; rows that have not ended fail with SchedulerClosed."""
        for model in self.models.values():
            model.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def state_of(request: Request) -> State:
    """Return the state of a request's application."""
    found: State = request.app.state.hanmo
    return found


async def read_body(request: Request) -> bytes:
    """Read the body of a request.

    Raises RequestError if it is no JSON by its header, too large, or too slow, or if all bodies are too much together.
    """
    state = state_of(request)
    header = Message()
    header["content-type"] = request.headers.get("content-type", "").strip() or "none"
    kind, charset = header.get_content_type(), header.get_content_charset("utf-8")
    if kind != "application/json":  # which a page of another origin cannot send without asking first
        raise RequestError(f"Content-Type is {header['content-type'][:80]!r}; expected application/json", status=415)
    if charset not in ("utf-8", "utf8"):
        raise RequestError(f"charset is {charset[:80]!r}; expected UTF-8", status=415)
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise RequestError(f"Content-Encoding is {coding[:80]!r}; send the body as it is", status=415)
    too_large = RequestError(f"the body has more than {state.max_body:,} bytes; send a smaller one", status=413)
    if int(request.headers.get("content-length", "0")) > state.max_body:
        raise too_large
    parts, size = list[bytes](), 0
    limit = time.monotonic() + _BODY_SECONDS
    try:
        chunks = request.stream()
        while True:
            part = await asyncio.wait_for(anext(chunks, b""), limit - time.monotonic())
            if not part:
                return b"".join(parts)
            size += len(part)
            state.bodies += len(part)
            request.scope["hanmo.body"] = size
            parts.append(part)
            if size > state.max_body:
                raise too_large
            if state.bodies > 4 * state.max_body:
                raise RequestError("too many large requests at once; try again later", status=429, retry_after=1)
    except asyncio.TimeoutError:
        raise RequestError(f"the body did not arrive within {_BODY_SECONDS} seconds", status=408) from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work, which is cancelled if the client leaves before. Raises ClientDisconnect then."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def to_json(content: object) -> str:
    """Return compact JSON. Raises ValueError for NaN and infinity."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_json_list(frame: Mapping[str, Any], name: str, items: Iterable[Any]) -> bytes:
    """Return the JSON of a frame, which has fields, and of a list as its last one.

    Items are converted one at a time: a single call for all of them would keep other threads waiting.
    """
    listed = ",".join(map(to_json, items))
    return f"{to_json(frame)[:-1]},{to_json(name)}:[{listed}]}}".encode()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
