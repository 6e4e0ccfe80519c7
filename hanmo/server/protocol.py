"""HTTP as uvicorn speaks it, with limits for headers and for what a client does not take; and a client that leaves is
noticed by all of its requests.
"""

import asyncio
from math import inf
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES, HEAD_SECONDS = 64 << 10, 20.0  # of the headers of a request


class Protocol(HttpToolsProtocol):
    """One connection.

    write_timeout: seconds after which a client that takes nothing of its answer is disconnected.
    """

    def __init__(self, *args: Any, write_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: int | None = 0  # bytes of headers that are not complete, None when they are
        self._limit: asyncio.TimerHandle | None = None
        self._write_timeout = write_timeout
        self._watch: asyncio.TimerHandle | None = None
        self._earlier: list[RequestResponseCycle] = []  # requests before the last, which uvicorn itself tells alone

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that writing is paused while anything is left to be taken
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request that the client has left."""
        super().connection_lost(exc)
        self._end_head()
        self._stop_watching()
        for cycle in self._earlier:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what came; headers that are too large end the connection."""
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The headers have more than {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Begin to wait for headers. Called by the parser, as the next."""
        super().on_message_begin()
        self._end_head()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """Start the request, or let it wait for those before it."""
        self._end_head()
        before: RequestResponseCycle | None = self.cycle
        super().on_headers_complete()
        self._earlier = [each for each in (*self._earlier, before) if each is not None and not each.response_complete]

    def pause_writing(self) -> None:
        """Wait for a client that has not taken all that was written. Called by the transport."""
        super().pause_writing()
        self._watch_client()

    def resume_writing(self) -> None:
        """Write on. Called by the transport when the client has taken all."""
        super().resume_writing()
        self._stop_watching()

    def _watch_client(self, before: float = inf) -> None:
        """Abort the connection if the write buffer did not shrink since the last look; else look again later."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(self._write_timeout, self._watch_client, left)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _begin_head(self) -> None:
        self._head, self._limit = 0, self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_head(self) -> None:
        self._head = None
        if self._limit is not None:
            self._limit.cancel()
