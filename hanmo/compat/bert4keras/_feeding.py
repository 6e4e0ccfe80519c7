"""bert4keras's helpers that feed data, with its use of NumPy's global generator: files by line, workers, batches."""

import builtins
import itertools
import json
import logging
import multiprocessing
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import DataError, Unsupported
from hanmo.files import MAX_BYTES, read_json


class open:  # bert4keras's name
    """A file like that of the builtin `open`, and by line number if it is indexable.

    indexable: True reads the file once to find its lines; a path is a file that stores their offsets.
    """

    def __init__(
        self,
        name: str,
        mode: str = "r",
        encoding: str | None = None,
        errors: str = "strict",
        indexable: bool | str = False,
    ) -> None:
        self.name, self.encoding, self.errors = name, encoding, errors
        self.file: Any = builtins.open(name, mode, encoding=encoding, errors=None if "b" in mode else errors)
        self.offsets: list[int] | None = None
        if isinstance(indexable, str) and Path(indexable).exists():
            self.offsets = read_json(Path(indexable), kind=list, limit=MAX_BYTES)
        elif indexable:
            self.create_indexes()
            if isinstance(indexable, str):
                with atomic_path(Path(indexable)) as made:
                    made.write_text(json.dumps(self.offsets), encoding="utf-8")

    def create_indexes(self) -> None:
        self.offsets = [self.tell()]
        while self.readline():
            self.offsets.append(self.tell())
        self.offsets.pop()  # the end of the file
        self.seek(0)

    def __getitem__(self, key: int) -> Any:
        if self.offsets is None:
            raise DataError(f"{self.name} was opened without an index; open it with indexable=True to ask for lines")
        self.seek(self.offsets[key])
        return self.readline()

    def __len__(self) -> int:
        if self.offsets is None:  # Python expects a TypeError of objects without a length
            raise TypeError(f"{self.name} was opened without an index; open it with indexable=True to count its lines")
        return len(self.offsets)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["file"], name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.file)

    def __next__(self) -> Any:
        return next(self.file)

    next = __next__

    def write(self, text: Any) -> None:
        self.file.write(text.decode(self.encoding, self.errors) if self.encoding and isinstance(text, bytes) else text)

    def seek(self, offset: int = 0) -> int:
        return int(self.file.seek(offset))

    def __enter__(self) -> "open":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Progress:
    """Iterate over an iterable and log the progress, as in version 0.6."""

    def __init__(
        self, iterable: Iterable[Any], period: int = 1, steps: int | None = None, desc: str | None = None
    ) -> None:
        self.iterable, self.period, self.desc = iterable, period, desc
        self.steps = len(iterable) if isinstance(iterable, Sized) else steps

    def __iter__(self) -> Iterator[Any]:
        start, total = f"{self.desc} - " if self.desc else "", f"/{self.steps}" if self.steps else ""
        for count, item in enumerate(self.iterable, 1):
            if count % self.period == 0:
                logging.getLogger().info("%s%d%s passed", start, count, total)
            yield item


# The function of a worker process or thread, set when it starts, so that it may be a closure.
_worker = threading.local()


def _start(func: Callable[[Any], Any], seeds: Any) -> None:
    _worker.func = func
    if not seeds.empty():
        np.random.seed(seeds.get())


def _work(item: Any) -> Any:
    return _worker.func(item)


def parallel_apply_generator(
    func: Callable[[Any], Any],
    iterable: Iterable[Any],
    workers: int,
    max_queue_size: int,
    dummy: bool = False,
    random_seeds: bool | Sequence[int | None] | None = True,
) -> Iterator[tuple[int, Any]]:
    """Yield (index, func(item)) for every item, computed by workers, in the order of the items.

    workers: processes on Linux; threads with dummy, and elsewhere.   max_queue_size: items read ahead.
    random_seeds: of NumPy's global generator, one for each worker; True for fresh ones, False to keep its state.
    """
    threads = dummy or not sys.platform.startswith("linux")
    context = multiprocessing.get_context(None if threads else "fork")
    seeds: Any = context.SimpleQueue()
    for seed in [None] * workers if random_seeds is True else random_seeds or []:
        seeds.put(seed)
    kind: Any = ThreadPoolExecutor if threads else partial(ProcessPoolExecutor, mp_context=context)
    executor: Executor = kind(workers, initializer=_start, initargs=(func, seeds))
    pending: deque[Future[Any]] = deque()
    index = itertools.count()
    try:
        for item in iterable:
            with warnings.catch_warnings():
                # Python warns of forking beside threads; a func that is a closure reaches its workers in no other way.
                warnings.simplefilter("ignore", DeprecationWarning)
                pending.append(executor.submit(_work, item))
            while pending and (pending[0].done() or len(pending) >= max_queue_size + workers):
                yield next(index), pending.popleft().result()
        while pending:
            yield next(index), pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


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
    """Return what `parallel_apply_generator` yields, or call callback with each; unordered is ignored."""
    pairs = parallel_apply_generator(func, iterable, workers, max_queue_size, dummy, random_seeds)
    if callback is None:
        return [result for _, result in pairs]
    for _, result in pairs:
        callback(result)
    return None


class DataGenerator:
    """Base class of a generator of batches; a subclass defines `__iter__` over `sample`.

    data: a sequence, or an iterable without a length.   buffer_size: items that the latter are shuffled in.
    """

    def __init__(self, data: Any, batch_size: int = 32, buffer_size: int | None = None) -> None:
        self.data, self.batch_size = data, batch_size
        self.steps = -(-len(data) // batch_size) if hasattr(data, "__len__") else None
        self.buffer_size = buffer_size or batch_size * 1000

    def __len__(self) -> int:
        if self.steps is None:
            raise DataError("the data have no length; give steps_per_epoch yourself, or data that know their length")
        return self.steps

    def sample(self, random: bool = False) -> Iterator[tuple[bool, Any]]:
        """Yield (whether it is the last, item) for one pass; random shuffles with NumPy's global generator."""
        items, missing = self._shuffled() if random else iter(self.data), object()
        current = next(items, missing)
        if current is missing:
            raise DataError("there are no data: the generator was given nothing to iterate over")
        for following in items:
            yield False, current
            current = following
        yield True, current

    def _shuffled(self) -> Iterator[Any]:
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

    def __iter__(self, random: bool = False) -> Iterator[Any]:
        raise Unsupported(f"{type(self).__name__} has no __iter__; write one that takes random and gives batches")

    def forfit(self, random: bool = True) -> Iterator[Any]:
        while True:
            yield from self.__iter__(random)

    def fortest(self, random: bool = False) -> Iterator[Any]:
        return (batch[0] for batch in self.forfit(random))

    def to_dataset(self, types: Any, shapes: Any, names: Any = None, padded_batch: bool = False) -> Iterator[Any]:
        """Yield batches without end of the items that `__iter__` yields one by one.

        types, shapes, names: of an item, each in its structure, such as ("float32", "float32"), ([None], [None]) and
        ("Input-Token", "Input-Segment"); with names a batch has dicts.   padded_batch: pad with zeros where a shape
        has None to the longest, elsewhere to its size.
        """
        items = iter(self.forfit())
        named = _name(names, types), _name(names, shapes)
        while True:
            rows = [_name(names, item) for item in itertools.islice(items, self.batch_size)]
            yield _stack(rows, *named, padded=padded_batch)


def _name(names: Any, values: Any) -> Any:
    """Make dicts of values by their names: one name, names of a tuple, or tuples of names."""
    if names is None:
        return values
    if isinstance(names, str):
        return {names: values}
    if isinstance(names[0], str):
        return dict(zip(names, values, strict=False))
    return tuple(_name(inside, value) for inside, value in zip(names, values, strict=False))


def _stack(rows: list[Any], types: Any, shapes: Any, *, padded: bool) -> Any:
    if isinstance(types, dict):
        return {key: _stack([row[key] for row in rows], types[key], shapes[key], padded=padded) for key in types}
    if isinstance(types, tuple):
        parts = zip(zip(*rows, strict=False), types, shapes, strict=False)
        return tuple(_stack(list(part), dtype, shape, padded=padded) for part, dtype, shape in parts)
    arrays = [np.asarray(row, dtype=types) for row in rows]
    if padded:
        longest = np.max([array.shape for array in arrays], axis=0).tolist() if shapes else []
        sizes = [most if size is None else size for most, size in zip(longest, shapes, strict=True)]
        arrays = [
            np.pad(each, [(0, size - have) for size, have in zip(sizes, each.shape, strict=True)]) for each in arrays
        ]
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(map(str, dict.fromkeys(array.shape for array in arrays)))
        raise DataError(f"the items have the shapes {shapes}; give padded_batch=True to pad them")
    return np.stack(arrays)
