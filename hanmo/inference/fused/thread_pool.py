"""A pool of threads for kernels that release the GIL and wait for each other at barriers."""

import os
from collections.abc import Callable
from functools import lru_cache, partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any
from weakref import finalize

import numpy as np

__all__ = ["ThreadPool", "run_step"]

Queue = SimpleQueue[Callable[[], object] | None]


@lru_cache(4)
def _thread_pool(threads: int, process: int) -> "ThreadPool":
    return ThreadPool(threads)


def run_step(step: Callable[..., object], threads: int, *given: Any) -> None:
    """Run step(thread, threads, counter, *given) in so many threads, whose barriers count arrivals in `counter`."""
    counter = np.zeros(1, np.int64)
    # By process, as a forked one has none of its parent's threads.
    pool = _thread_pool(threads, os.getpid())
    pool.run(lambda thread: step(thread, threads, counter, *given), lambda: counter.fill(1 << 62))


class ThreadPool:
    """So many threads, the caller's included."""

    def __init__(self, threads: int) -> None:
        self._lock = Lock()  # two jobs at once would wait for each other's threads
        self._queues: list[Queue] = [SimpleQueue() for _ in range(threads - 1)]
        for queue in self._queues:
            Thread(target=_work, args=(queue,), daemon=True).start()
            finalize(self, queue.put, None)

    def run(self, job: Callable[[int], object], give_up: Callable[[], object] = lambda: None) -> None:
        """Run job(number) in every thread, numbered from 0, and wait for all; raise what one of them raised.

        give_up: called if a thread fails or is interrupted, while others may wait for it.
        """
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def run_in_thread(number: int) -> None:
            try:
                job(number)
                ended.put(None)
            except BaseException as error:  # the thread goes on to the next job
                give_up()
                ended.put(error)

        with self._lock:
            try:
                for number, queue in enumerate(self._queues, 1):
                    queue.put(partial(run_in_thread, number))
                job(0)
                errors = [error for _ in self._queues if (error := ended.get()) is not None]
            except BaseException:
                give_up()
                self._wait()  # they still use the caller's arrays
                raise
        if errors:
            raise errors[0]

    def _wait(self) -> None:
        """Wait until no thread has a job, of which an interrupt may have kept some from being put."""
        idle: SimpleQueue[None] = SimpleQueue()
        for queue in self._queues:
            queue.put(lambda: idle.put(None))
        for _ in self._queues:
            idle.get()


def _work(queue: Queue) -> None:
    while (job := queue.get()) is not None:
        job()
        del job
