"""Batches made ahead in a thread, so that a GPU does not wait for them; and how any batch is cut and counted.

A batch is ids [rows, window + 1], or a dict of arrays [rows, …] for losses that need more.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hanmo.training.data.epochs import Batches

Batch: TypeAlias = "Tensor | dict[str, Tensor]"


def cut(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into parts of complete rows, as even as possible.

    If there are fewer rows than parts, the last parts repeat the first row with nothing to predict.
    """
    rows = batch if isinstance(batch, dict) else {"": batch}
    lack = count - count_rows(batch)
    if lack > 0:
        rows = {name: torch.cat((part, part[:1].expand(lack, *part.shape[1:]))) for name, part in rows.items()}
        rows[next(name for name in ("weight", "targets", "") if name in rows)][-lack:] = 0
    parts = {name: part.tensor_split(count) for name, part in rows.items()}
    cuts = [{name: tensors[at] for name, tensors in parts.items()} for at in range(count)]
    return [part if isinstance(batch, dict) else part[""] for part in cuts]


def count_rows(batch: Batch) -> int:
    """Count the rows of a batch."""
    return len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))


def count_predicted(batch: Batch) -> Tensor:
    """Count what a loss over a batch is the mean of: the sum of "weight", or the ids to predict that are not 0.

    These are "targets", or all ids but the first of each row.
    """
    if isinstance(batch, dict) and "weight" in batch:
        return batch["weight"].sum()
    targets = batch[:, 1:] if isinstance(batch, Tensor) else batch["targets"]
    return (targets != 0).sum()


def count_read(batch: Batch) -> int:
    """Count the ids that a model reads of a batch, padding included."""
    if isinstance(batch, Tensor):
        return batch.numel() - len(batch)
    return max(tensor.numel() for tensor in batch.values())


@contextmanager
def ahead(
    data: Batches, *, epoch: int, step: int, device: torch.device, count: int = 32
) -> Iterator[Iterator[tuple[int, int, Batch]]]:
    """Yield an iterator of (epoch, step, batch on the device); a thread makes up to `count` batches ahead.

    An error in the thread is raised by the iterator.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=count)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def tensor(array: NDArray[Any]) -> Tensor:
        made = torch.from_numpy(np.ascontiguousarray(array))
        return made.pin_memory() if device.type == "cuda" else made

    def work() -> None:
        try:
            for at_epoch, at_step, arrays in data.batches(epoch, step):
                put((at_epoch, at_step, _each(tensor, arrays)))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # raised in the thread that trains
            put(error)

    def taken() -> Iterator[tuple[int, int, Batch]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0], item[1], _each(lambda made: made.to(device, non_blocking=True), item[2])

    thread = threading.Thread(target=work, name="hanmo-batches", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()


def _each(change: Callable[[Any], Tensor], batch: Any) -> Batch:
    return {name: change(part) for name, part in batch.items()} if isinstance(batch, dict) else change(batch)
