"""Batches made ahead in a thread, so that a GPU never waits for them.

Knows threads and queues. Knows neither what a batch holds nor what is done with it.
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Batches", "ahead"]


class Batches(Protocol):
    """What training asks of data: batches without end from any place on, the same every time."""

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Any]]:
        """Yield (epoch, step of the epoch, ids [rows, window + 1] as a NumPy array)."""


@contextmanager
def ahead(
    data: Batches, *, epoch: int, step: int, device: torch.device, count: int = 32
) -> Iterator[Iterator[tuple[int, int, Tensor]]]:
    """Give an iterator over (epoch, step, ids on the device) whose batches a thread makes, at most `count` ahead.

    An error in the thread is raised where the batch is asked for.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=count)
    stopped = threading.Event()
    pin = device.type == "cuda"

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for at_epoch, at_step, ids in data.batches(epoch, step):
                tensor = torch.from_numpy(ids)
                put((at_epoch, at_step, tensor.pin_memory() if pin else tensor))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # carried over to the thread that trains, and raised there
            put(error)

    def taken() -> Iterator[tuple[int, int, Tensor]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0], item[1], item[2].to(device, non_blocking=True)

    thread = threading.Thread(target=work, name="hanmo-batches", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()
