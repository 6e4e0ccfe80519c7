"""Batches of windows: shuffled and of like length for training, in order for prediction.

Knows a task's windows and its `collate`. Knows no network's parts and no files.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from hanmo.errors import DataError
from hanmo.tasks.task import Arrays, Example, Result, Task, TaskNetwork
from hanmo.training.score import evaluating

_POOL = 32  # batches whose windows are sorted by length together
_IDS = 1024  # of a batch on a CPU, which gains nothing by more; smaller batches have less padding


class TaskBatches:
    """Training batches of a task; the seed, the epoch and the step decide each.

    rows: windows of a batch.   Windows are shuffled, sorted by length within some batches, and these shuffled again.
    """

    def __init__(self, task: Task, examples: Sequence[Example], *, rows: int, seed: int = 0) -> None:
        self._task, self._rows, self._seed = task, rows, seed
        self.windows = [(example, window) for example in examples for window in task.train_windows(example)]
        if not self.windows:
            raise DataError("there is no row to train on; give at least one")

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.windows) // self._rows)

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Arrays]]:
        """Yield (epoch, step of the epoch, batch) without end."""
        while True:
            for number, chosen in enumerate(self._epoch(epoch)):
                if number >= step:
                    yield epoch, number, self._task.collate([self.windows[place] for place in chosen])
            epoch, step = epoch + 1, 0

    def _epoch(self, epoch: int) -> list[list[int]]:
        draw = np.random.default_rng([self._seed, epoch])
        order = draw.permutation(len(self.windows)).tolist()
        made: list[list[int]] = []
        for start in range(0, len(order), _POOL * self._rows):
            pool = sorted(order[start : start + _POOL * self._rows], key=lambda place: len(self.windows[place][1]))
            made += [pool[at : at + self._rows] for at in range(0, len(pool), self._rows)]
        return [made[place] for place in draw.permutation(len(made))]


@torch.no_grad()
def predict(network: TaskNetwork, examples: Iterable[Example], *, batch: int = 32) -> Iterator[Result]:
    """Yield the result of each example in order; windows of like length are computed together, at most `batch`.

    The network is put into evaluation mode, and back at the end.
    """
    task, device = network.task, next(network.parameters()).device
    remaining = iter(examples)
    with evaluating(network):
        while some := list(islice(remaining, _POOL * batch)):
            windows = [(number, window) for number, example in enumerate(some) for window in example.windows]
            outputs = dict.fromkeys(range(len(windows)))
            lengths = [len(window) for _, window in windows]
            for places in _by_length(lengths, rows=batch, ids=_IDS if device.type == "cpu" else None):
                arrays = task.collate([(some[windows[p][0]], windows[p][1]) for p in places], targets=False)
                tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
                outputs.update(zip(places, task.infer(network, tensors), strict=True))
            at = 0
            for example in some:
                stop = at + len(example.windows)
                yield task.decode(example, [outputs[place] for place in range(at, stop)])
                at = stop


def _by_length(lengths: Sequence[int], *, rows: int, ids: int | None) -> Iterator[list[int]]:
    """Yield the places of windows that are computed together, longest first: at most `rows`, of `ids` with padding."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        count = rows if ids is None else min(rows, max(1, ids // lengths[order[0]]))
        yield order[:count]
        del order[:count]
