"""API keys, host names, and the number of requests that are answered at a time."""

import hmac
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hanmo.errors import ConfigError
from hanmo.files import errors_as, read_bytes
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


class RequireHost:
    """Middleware: refuses requests, but of /health, to names that are neither this machine's own nor one of `hosts`.

    A web page whose name is made to resolve to this machine (DNS rebinding) sends requests of its own origin.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, {_name_of(host) for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app = self._app
        health = f"{scope.get('root_path', '')}/health"  # load balancers ask for it by an address
        given = Headers(scope=scope).get("host") if scope["type"] == "http" and scope["path"] != health else None
        if given is not None:
            name = _name_of(given)
            if not is_local(name) and name not in self._hosts:
                message = f"the server does not answer to the host {given[:80]!r}; start it with --allowed-host"
                app = RequestError(message, status=403, code="wrong_host").response()
        await app(scope, receive, send)


class Admission:
    """Middleware: refuses requests while the server drains or too many are being answered."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises RequestError."""
        state = self._state
        if state.draining:
            raise RequestError("the server is shutting down", status=503, code="shutting_down", retry_after=5)
        if state.active >= state.max_requests:
            message = f"{state.active} requests are being answered; try again later"
            raise RequestError(message, status=429, code="queue_full", retry_after=1)
        state.active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            state.active -= 1
            state.release_body(scope)


def read_keys(path: Path) -> list[str]:
    """Return the keys in a file, one a line; lines that begin with # are comments. Raises ConfigError."""
    keys = list[str]()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if key.split() != [key]:
            raise ConfigError(
                f"{path} line {number} is no key; write one a line without spaces, and # before a comment"
            )
        keys.append(key)
    if not keys:
        raise ConfigError(f"{path} holds no key; write one a line")
    return keys


def read_text(path: Path) -> str:
    """Return the text of a small file in UTF-8, without a byte order mark. Raises ConfigError."""
    with errors_as(ConfigError, f"{path} is not UTF-8"):
        return read_bytes(path, error=ConfigError, limit=1 << 20).decode("utf-8-sig")


def check_keys(keys: Sequence[str]) -> None:
    """Raise ConfigError for a key that is empty, which every request would have, or that no request can send."""
    if any(key.split() != [key] for key in keys):
        raise ConfigError("api_key is empty or holds white space; give another key")


def check_host(host: str, keys: Sequence[str], *, anonymous: bool) -> None:
    """Raise ConfigError for a server that others can reach without a key, unless `anonymous`."""
    if not is_local(host) and not keys and not anonymous:
        raise ConfigError(
            f"host is {host!r}, which other machines can reach, and there is no key; give api_key, or anonymous=True"
        )


def is_local(host: str) -> bool:
    """Tell whether a host name or address is this machine's loopback interface."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name_of(host: str) -> str:
    """Return the name in a Host header, without its port; "" if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
