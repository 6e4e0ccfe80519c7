"""Data as numbered batches, epoch after epoch, the same every time: training resumes from any of them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Protocol

from hanmo.errors import DataError


class Batches(Protocol):
    """What training needs of data."""

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Any]]:
        """Yield (epoch, step of the epoch, batch of NumPy arrays) from there on, without end."""


class Epochs:
    """Data of numbered batches; a subclass gives `steps` and `_batch`."""

    def steps(self, epoch: int = 0) -> int:
        """Return the number of batches of an epoch."""
        raise NotImplementedError

    def _batch(self, epoch: int, step: int) -> Any:
        raise NotImplementedError

    def batch(self, epoch: int, step: int) -> Any:
        """Return one batch. Raises DataError if the epoch has no such step."""
        if not 0 <= step < self.steps(epoch):
            raise DataError(f"epoch {epoch} has steps 0 to {self.steps(epoch) - 1}, asked for {step}")
        return self._batch(epoch, step)

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Any]]:
        """Yield (epoch, step of the epoch, batch) from there on, without end."""
        while True:
            for number in range(step, self.steps(epoch)):
                yield epoch, number, self._batch(epoch, number)
            epoch, step = epoch + 1, 0


class Repeated(Epochs):
    """A list of batches as data: every epoch is the list. Raises DataError if it is empty."""

    def __init__(self, batches: Sequence[Any]) -> None:
        if not len(batches):
            raise DataError("the list of batches is empty; give at least one batch to train on")
        self._batches = batches

    def steps(self, epoch: int = 0) -> int:
        """Return the length of the list."""
        return len(self._batches)

    def _batch(self, epoch: int, step: int) -> Any:
        return self._batches[step]


def digest(items: Iterable[Any]) -> str:
    """Return a digest of JSON values in their order, by which a resumed run knows its data."""
    found = sha256()
    for item in items:
        found.update(json.dumps(item, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()
