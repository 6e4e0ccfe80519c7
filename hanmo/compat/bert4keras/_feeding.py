"""bert4keras's helpers that feed data: files by line, work spread over workers, batches for training.

Knows files, processes and NumPy's global generator. Results and draws are those of bert4keras 0.11.5.
"""

import builtins
import json
import logging
import multiprocessing
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from multiprocessing.pool import Pool, ThreadPool
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from hanmo.compat.bert4keras._strings import convert_to_unicode
from hanmo.errors import DataError, Unsupported
from hanmo.files import MAX_BYTES, read_json


class open:  # bert4keras's own name
    """A file like the builtin's, and by line number if it is indexable.

    indexable: True reads the file once to find its lines; a path keeps what was found there, or takes it from there.
    """

    def __init__(
        self,
        name: str,
        mode: str = "r",
        encoding: str | None = None,
        errors: str = "strict",
        indexable: bool | str = False,
    ) -> None:
        self.name = name
        self.encoding = encoding
        self.errors = errors
        self.file: Any = builtins.open(name, mode, encoding=encoding, errors=None if "b" in mode else errors)
        self.offsets: list[int] | None = None
        self._lines: Iterator[Any] | None = None
        if isinstance(indexable, str) and Path(indexable).exists():
            self.offsets = read_json(Path(indexable), kind=list, limit=MAX_BYTES)
        elif indexable:
            self.create_indexes()
            if isinstance(indexable, str):
                beside = Path(f"{indexable}.part")
                beside.write_text(json.dumps(self.offsets), encoding="utf-8")
                beside.replace(indexable)

    def create_indexes(self) -> None:
        """Find where every line starts."""
        self.offsets = []
        offset = self.tell()
        while self.readline():
            self.offsets.append(offset)
            offset = self.tell()
        self.seek(0)

    def __getitem__(self, key: int) -> Any:
        """Read the line of this number."""
        if self.offsets is None:
            raise DataError(f"{self.name} was opened without an index; open it with indexable=True to ask for lines")
        self.seek(self.offsets[key])
        return self.readline()

    def __len__(self) -> int:
        """Count the lines; without an index there is no length, which Python wants to hear as a TypeError."""
        if self.offsets is None:
            raise TypeError(f"{self.name} was opened without an index; open it with indexable=True to count its lines")
        return len(self.offsets)

    def __iter__(self) -> Iterator[Any]:
        """Read line by line from where the file stands."""
        return (self._decoded(line) for line in self.file)

    def __next__(self) -> Any:
        """Read the next line."""
        self._lines = self._lines or iter(self)
        return next(self._lines)

    next = __next__

    def read(self) -> Any:
        """Read all that is left."""
        return self._decoded(self.file.read())

    def readline(self) -> Any:
        """Read one line, "" at the end."""
        return self._decoded(self.file.readline())

    def readlines(self) -> list[Any]:
        """Read all lines that are left."""
        return list(self)

    def write(self, text: Any) -> None:
        """Write a text."""
        self.file.write(self._decoded(text))

    def flush(self) -> None:
        """Hand everything to the system."""
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def tell(self) -> int:
        """Say where the file stands."""
        return int(self.file.tell())

    def seek(self, offset: int = 0) -> int:
        """Go to where `tell` said."""
        return int(self.file.seek(offset))

    def __enter__(self) -> "open":
        """Give itself."""
        return self

    def __exit__(self, type: object, value: object, tb: object) -> None:
        """Close the file."""
        self.close()

    def _decoded(self, text: Any) -> Any:
        return convert_to_unicode(text, self.encoding, self.errors) if self.encoding else text


class Progress:
    """Log how far an iteration is, as in version 0.6; iterate over it instead of over the iterable."""

    def __init__(
        self, iterable: Iterable[Any], period: int = 1, steps: int | None = None, desc: str | None = None
    ) -> None:
        self.iterable = iterable
        self.period = period
        self.steps = len(iterable) if isinstance(iterable, Sized) else steps
        self.desc = desc

    def __iter__(self) -> Iterator[Any]:
        """Give the items and log every period-th."""
        start, total = f"{self.desc} - " if self.desc else "", f"/{self.steps}" if self.steps else ""
        for count, item in enumerate(self.iterable, 1):
            if count % self.period == 0:
                logging.getLogger().info("%s%d%s passed", start, count, total)
            yield item


def parallel_apply_generator(
    func: Callable[[Any], Any],
    iterable: Iterable[Any],
    workers: int,
    max_queue_size: int,
    dummy: bool = False,
    random_seeds: bool | Sequence[int | None] | None = True,
) -> Iterator[tuple[int, Any]]:
    """Give (index, func(item)) for every item, computed by workers, in the order of the items.

    workers: processes on Linux; threads with dummy, and elsewhere.   max_queue_size: items read ahead.
    random_seeds: for NumPy's global generator, one a worker; True for fresh ones, False to leave it as it is.
    An error of func is raised here.
    """
    seeds: list[int | None] = [None] * workers if random_seeds is True else list(random_seeds or [])
    room, over = threading.Semaphore(max_queue_size + workers), threading.Event()

    def feed() -> Iterator[tuple[int, Any]]:
        for pair in enumerate(iterable):
            room.acquire()
            if over.is_set():
                return
            yield pair

    pool = _pool(func, workers, seeds, threads=dummy or not sys.platform.startswith("linux"))
    try:
        for result in pool.imap(_work, feed()):
            yield result
            room.release()
    finally:
        over.set()
        room.release()
        pool.terminate()
        pool.join()


def parallel_apply(
    func: Callable[[Any], Any],
    iterable: Iterable[Any],
    workers: int,
    max_queue_size: int,
    callback: Callable[[Any], object] | None = None,
    dummy: bool = False,
    random_seeds: bool | Sequence[int | None] | None = True,
    unordered: bool = True,
) -> list[Any] | None:
    """Apply func to every item by workers and return the results, or give each to callback.

    See `parallel_apply_generator`. unordered allowed bert4keras another order; here results keep that of the items.
    """
    results = (
        result for _, result in parallel_apply_generator(func, iterable, workers, max_queue_size, dummy, random_seeds)
    )
    if callback is None:
        return list(results)
    for result in results:
        callback(result)
    return None


class DataGenerator:
    """Base of a generator of batches; subclass it and write `__iter__`, over `sample`.

    data: a sequence, or an iterable of unknown length.   buffer_size: items mixed at once for the latter.
    """

    def __init__(self, data: Any, batch_size: int = 32, buffer_size: int | None = None) -> None:
        self.data = data
        self.batch_size = batch_size
        self.steps = -(-len(data) // batch_size) if hasattr(data, "__len__") else None
        self.buffer_size = buffer_size or batch_size * 1000

    def __len__(self) -> int:
        """Count the batches of one pass."""
        if self.steps is None:
            raise DataError("the data have no length; give steps_per_epoch yourself, or data that know their length")
        return self.steps

    def sample(self, random: bool = False) -> Iterator[tuple[bool, Any]]:
        """Give (whether it is the last, item) for one pass; random mixes them by NumPy's global generator."""
        items = iter(self.data) if not random else self._mixed()
        missing = object()
        current = next(items, missing)
        if current is missing:
            raise DataError("there are no data: the generator was given nothing to go through")
        for following in items:
            yield False, current
            current = following
        yield True, current

    def __iter__(self, random: bool = False) -> Iterator[Any]:
        """Give the batches of one pass; to be written in the subclass."""
        raise Unsupported(f"{type(self).__name__} has no __iter__; write one that takes random and gives batches")

    def forfit(self, random: bool = True) -> Iterator[Any]:
        """Give batches without end."""
        while True:
            yield from self.__iter__(random)

    def fortest(self, random: bool = False) -> Iterator[Any]:
        """Give the inputs of batches without end."""
        for batch in self.forfit(random):
            yield batch[0]

    def to_dataset(self, types: Any, shapes: Any, names: Any = None, padded_batch: bool = False) -> Any:
        """Fail: there is no TensorFlow here to make a dataset for."""
        raise Unsupported(
            "DataGenerator.to_dataset makes a tf.data.Dataset, and Hanmo works without TensorFlow; iterate over the "
            "generator itself (forfit() for endless batches)"
        )

    def _mixed(self) -> Iterator[Any]:
        if self.steps is not None:
            yield from (self.data[place] for place in np.random.permutation(len(self.data)))
            return
        buffer: list[Any] = []
        for item in self.data:
            buffer.append(item)
            if len(buffer) > self.buffer_size:
                yield buffer.pop(np.random.randint(len(buffer)))
        while buffer:
            yield buffer.pop(np.random.randint(len(buffer)))


# What a worker applies: set in each worker process when it starts, or for each thread, so that func may be a closure.
_worker = threading.local()


def _pool(func: Callable[[Any], Any], workers: int, seeds: list[int | None], *, threads: bool) -> Pool:
    if threads:
        queue: SimpleQueue[int | None] = SimpleQueue()
        for seed in seeds:
            queue.put(seed)
        return ThreadPool(workers, _start, (func, queue))
    context = multiprocessing.get_context("fork")
    shared = context.SimpleQueue()
    for seed in seeds:
        shared.put(seed)
    with warnings.catch_warnings():
        # Python warns of forking beside threads. func, a closure as a rule, reaches its workers in no other way.
        warnings.simplefilter("ignore", DeprecationWarning)
        return context.Pool(workers, _start, (func, shared))


def _start(func: Callable[[Any], Any], seeds: Any) -> None:
    _worker.func = func
    if not seeds.empty():
        np.random.seed(seeds.get())


def _work(pair: tuple[int, Any]) -> tuple[int, Any]:
    return pair[0], _worker.func(pair[1])
