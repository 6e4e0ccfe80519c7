"""Run the application: uvicorn, and what SIGTERM does."""

import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from hanmo.errors import ConfigError
from hanmo.server.protocol import Protocol
from hanmo.server.state import State


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not yet listening. Raises ConfigError if that is not possible."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as opened:
            found = opened.enter_context(socket.socket(family, kind))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Of each connection: with Linux's 4 MiB a client that reads slowly looks as if it read nothing.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
            found.bind(address)
            opened.pop_all()
    except OSError as error:
        raise ConfigError(f"host is {host!r}, port {port}; cannot listen there: {error.strerror}") from None
    return found


class Server(uvicorn.Server):
    """A server that drains: after SIGTERM or Ctrl-C running requests end and new ones get 503.

    A second signal ends the process at once.
    grace: seconds that running requests have to end.   write_timeout: seconds after which a client that takes nothing
    of its answer is disconnected.   ready: called with the URL when connections are accepted.
    """

    def __init__(
        self,
        app: Starlette,
        *,
        grace: float = 60.0,
        write_timeout: float = 30.0,
        ready: Callable[[str], None] = lambda url: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Protocol, write_timeout=write_timeout),  # type: ignore[arg-type]
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                log_config=None,  # uvicorn's would close all handlers of the process
                timeout_graceful_shutdown=5,
            )
        )
        self._state: State = app.state.hanmo
        self._grace, self._ready = grace, ready
        self._limit = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Called by uvicorn."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second time, end the process. Called by uvicorn for SIGINT and SIGTERM."""
        if self._state.draining or not self.started:
            signal.signal(sig, signal.SIG_DFL)  # threads that compute would keep Python from ending
            signal.raise_signal(sig)
        self._state.draining = True
        self._limit = time.monotonic() + self._grace

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to end. Called by uvicorn ten times a second."""
        if self._state.draining and time.monotonic() > self._limit:
            self._state.close()  # streams end with an error
            return True
        return await super().on_tick(counter) or (self._state.draining and not self._state.active)
