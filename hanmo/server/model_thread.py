"""The thread of a model's requests that its scheduler does not run: beams, vectors, masks, tasks."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Event
from typing import ParamSpec, TypeVar

from hanmo.errors import QueueFull, SchedulerClosed
from hanmo.server.errors import RequestError

P = ParamSpec("P")
T = TypeVar("T")
_CANCELLED: ContextVar[Event | None] = ContextVar("_CANCELLED", default=None)  # of what this thread computes


class ModelThread:
    """Computes one request after the other.   max_queue: requests that wait."""

    def __init__(self, max_queue: int) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="hanmo-model")
        self._max_queue, self._requests = max_queue, 0
        self._closed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Count a request during the block. Raises QueueFull."""
        if self._requests > self._max_queue:
            raise QueueFull(f"{self._max_queue} requests are waiting for this model; try again later")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the thread; when this is cancelled, the next `check_wanted` in it raises.

        Raises SchedulerClosed after `close`.
        """
        cancelled, work = Event(), [partial(function, *args, **kwargs)]

        def call() -> T:
            _CANCELLED.set(cancelled)
            return work.pop()()

        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self.executor, call)
        except asyncio.CancelledError:
            cancelled.set()
            work.clear()  # the executor keeps `call` until its turn comes
            self._check_open()
            raise

    def close(self) -> None:
        """Compute no more requests."""
        self._closed = True
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise SchedulerClosed("the server was closed before the request ended")


def check_wanted(*_: object) -> None:
    """Raise RequestError in a thread whose request was cancelled; a hook of networks that runs before each pass."""
    cancelled = _CANCELLED.get()
    if cancelled is not None and cancelled.is_set():
        raise RequestError("the client has left", status=499)
