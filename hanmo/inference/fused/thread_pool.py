"""Threads that wait, each for its share of a job that Python need not hold its lock for."""

import os
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any
from weakref import finalize

import numpy as np

__all__ = ["ThreadPool", "run_step", "thread_pool"]


def thread_pool(threads: int) -> "ThreadPool":
    """Give the one thread_pool of so many threads of this process."""
    return _thread_pool_of(threads, os.getpid())  # a process that was forked off has none of its parent's threads


@lru_cache(4)
def _thread_pool_of(threads: int, process: int) -> "ThreadPool":
    return ThreadPool(threads)


def run_step(step: Callable[..., object], threads: int, *how: Any) -> None:
    """Run step(thread, threads, counter, *how) in so many threads, which meet by the counter."""
    counter = np.zeros(1, np.int64)

    def give_up() -> None:
        counter[0] = 1 << 62  # every meeting is over, so that no thread waits for one that will not come

    thread_pool(threads).run(lambda thread: step(thread, threads, counter, *how), give_up)


class ThreadPool:
    """A count of threads, the caller's among them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = Lock()  # two jobs at once would wait for each other's threads
        self._queues: list[SimpleQueue[Callable[[], object] | None]] = [SimpleQueue() for _ in range(threads - 1)]
        for queue in self._queues:
            Thread(target=_work, args=(queue,), daemon=True).start()
        finalize(self, _dismiss, self._queues)

    def run(self, job: Callable[[int], object], give_up: Callable[[], object] = lambda: None) -> None:
        """Have every thread do job(number), numbers from 0, and wait for all of them; raise what one of them raised.

        give_up: called where a thread fails or is interrupted, and others may wait for it in their jobs.
        """
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def of(number: int) -> Callable[[], object]:
            def do() -> None:
                try:
                    job(number)
                    ended.put(None)
                except BaseException as error:  # the thread goes on to the next job
                    give_up()
                    ended.put(error)

            return do

        begun = 0
        with self._lock:
            try:
                for number, queue in enumerate(self._queues, 1):
                    begun = number
                    queue.put(of(number))
                job(0)
            except BaseException:
                give_up()
                for _ in range(begun):  # what they work on must not be let go before
                    ended.get(timeout=10)
                raise
            errors = [error for _ in self._queues if (error := ended.get()) is not None]
        if errors:
            raise errors[0]


def _work(queue: "SimpleQueue[Callable[[], object] | None]") -> None:
    while (job := queue.get()) is not None:
        job()
        del job


def _dismiss(queues: "list[SimpleQueue[Callable[[], object] | None]]") -> None:
    for queue in queues:
        queue.put(None)
