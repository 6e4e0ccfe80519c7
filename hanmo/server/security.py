"""API keys, and the number of requests that are answered at a time."""

import hmac
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hanmo.errors import ConfigError
from hanmo.server.errors import RequestError
from hanmo.server.state import State


class RequireKey:
    """Middleware: refuses requests without one of the keys; lets all pass if there are none."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises RequestError."""
        if self._keys:
            kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            sent = given.strip().encode("latin-1")
            # Every key is compared, so that the time does not tell which.
            found = [hmac.compare_digest(sent, key) for key in self._keys]
            if kind.lower() != "bearer" or not any(found):
                raise RequestError(
                    "the API key is missing or wrong; send the header Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                )
        await self._app(scope, receive, send)


class Admission:
    """Middleware: refuses requests while the server drains or too many are being answered, and counts them."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises RequestError."""
        state, status = self._state, 500
        if state.draining:
            raise RequestError("the server is shutting down", status=503, code="shutting_down", retry_after=5)
        if state.active >= state.max_requests:
            message = f"{state.active} requests are being answered; try again later"
            raise RequestError(message, status=429, code="queue_full", retry_after=1)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        state.active += 1
        try:
            await self._app(scope, receive, watched)
        except RequestError as error:
            status = error.status
            raise
        except HTTPException as error:  # of the router
            status = error.status_code
            raise
        finally:
            state.active -= 1
            state.bodies -= scope.get("hanmo.body", 0)
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            state.metrics.requests.labels(endpoint, str(status)).inc()


def check_host(host: str, keys: Sequence[str], *, anonymous: bool) -> None:
    """Raise ConfigError for a server that others can reach without a key, unless `anonymous`."""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not keys and not anonymous:
        raise ConfigError(
            f"host is {host!r}, which other machines can reach, and there is no key; give api_key, or anonymous=True"
        )
