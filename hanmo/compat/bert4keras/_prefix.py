"""Prefix cache of `predict`: inputs that continue those of the last call are computed from the first new token on.

Only for models without attention to later tokens. Each row continues the row of the last call that shares its longest
prefix, so rows may multiply, end and change order. The cache is one batch, not the single rows that
`hanmo.inference.prefix_cache` keeps, because `predict` runs all rows of a loop in one forward, with any inputs beside
the ids, and returns the outputs at every position.
"""

import hashlib
import os
import threading
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hanmo.compat.bert4keras._forward import TOKENS, outputs_of
from hanmo.compat.bert4keras._pages import Pages
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.inference.prefix_cache import shared_lengths

Array = npt.NDArray[Any]

_MAX_COMPARED = 1 << 26  # pairs of tokens; with more, a row is only compared with the old row of its own index
_MIN_CAPACITY = 64


class Runner(Protocol):
    """What computes a model's outputs and holds the keys and values of the tokens it has seen.

    token_bytes: bytes of the keys and values of one token.
    stamp():     a number that changes with the weights.
    new(…):      an empty cache with room for `capacity` tokens of each row; its `cut(length)` drops later tokens.
    take(…):     keep these rows of a cache, in this order (None: all), with room for `capacity` tokens.
    run(…):      the outputs of the tokens from `start` on, where `kept` holds those before and takes up these;
                 last: of the last position alone, [rows, 1, …].
    """

    token_bytes: int

    def stamp(self) -> int: ...
    def new(self, rows: int, capacity: int) -> Any: ...
    def take(self, kept: Any, rows: Array | None, capacity: int) -> None: ...
    def run(self, inputs: dict[str, Array], *, start: int = 0, kept: Any = None, last: bool = False) -> list[Array]: ...


class Prefix:
    """The inputs of the last call, with their keys, values and outputs.

    most_bytes: memory limit; a call that would need more is not cached. 0 turns the cache off.
    """

    def __init__(self, config: ModelConfig, settings: Settings, runner: Runner, *, most_bytes: int = 4 << 30) -> None:
        self.most_bytes = most_bytes
        self._config, self._runner = config, runner
        logits = outputs_of(config, settings)[0][0] == "logits"
        self._output_size = config.vocab_size if logits else config.main.hidden_size
        self._lock = threading.Lock()
        self.forget()

    @staticmethod
    def supports(config: ModelConfig, settings: Settings) -> bool:
        """Tell whether a model attends to no later token and has one output, with a value for each token."""
        kinds = [kind for kind, _ in outputs_of(config, settings)]
        return settings.part != "encoder" and config.main.mask != "full" and kinds in (["logits"], ["hidden"])

    def forget(self) -> None:
        """Drop the cache."""
        self._process = os.getpid()
        self._cache: Any = None
        self._capacity = 0  # tokens of a row that have room in the cache
        self._pages: Pages | None = None
        self._known = 0  # positions whose outputs are in the pages
        self._tokens: Array = np.empty((0, 0, 0), np.int64)
        self._context: tuple[list[Array], list[bytes]] = [], []
        self._digests: list[bytes] = []
        self._stamp = 0

    def predict(self, inputs: dict[str, Array], *, last: bool, rows_at_once: int) -> Array | None:
        """Compute the outputs of all positions, or of the last, from the cache and the new tokens.

        rows_at_once: the most full rows in one forward.
        Returns [rows, n, …] or [rows, 1, …], which the caller may write to; None if the call cannot be cached.
        """
        with self._lock:
            return self._predict(inputs, last, rows_at_once)

    def _predict(self, inputs: dict[str, Array], last: bool, rows_at_once: int) -> Array | None:
        names = [name for name in TOKENS if name in inputs]
        tokens = np.stack([inputs[name] for name in names], -1)
        rows, count = tokens.shape[:2]
        limit = self._config.main.context
        token = self._runner.token_bytes + 4 * max(self._config.vocab_size, self._config.main.hidden_size)
        if (limit is not None and count > limit) or rows * count * token > self.most_bytes:
            self.forget()
            return None
        digests = self._digest([value for name, value in inputs.items() if name not in names])
        stamp = self._runner.stamp()
        if self._process != os.getpid():  # after a fork the pages are shared with the parent
            self.forget()
        if stamp != self._stamp:
            self._cache = None
        source, length = self._match(tokens, digests)
        length = min(length, count - 1 if last else self._known)
        if length and self._config.main.mask == "prefix":
            length = _segment_start(length, self._tokens[source], tokens, names.index("Input-Segment"))
        if rows * (count - length) > rows_at_once * count:
            self.forget()
            return None
        cache = self._make_room(source, length, rows, count, last)
        result: Array | None = None
        if length < count:
            (result,) = self._runner.run(inputs, start=length, kept=cache, last=last)
        if not last:
            assert self._pages is not None
            if result is not None:
                self._pages.write(length, result)
            self._known = count
            result = self._pages.view(count)
        elif not self._known:
            self._pages = None
        self._cache, self._tokens, self._digests, self._stamp = cache, tokens, digests, stamp
        return result

    def _digest(self, context: list[Array]) -> list[bytes]:
        """Hash each row of the inputs that are not tokens, such as an encoder's output."""
        old, digests = self._context
        if len(old) == len(context) and all(map(np.array_equal, old, context)):
            return digests
        shapes = repr([(value.shape[1:], value.dtype) for value in context]).encode()
        digests = [
            hashlib.blake2b(shapes + b"".join(value[row].tobytes() for value in context), digest_size=16).digest()
            for row in range(len(context[0]))
        ]
        self._context = [value.copy() for value in context], digests
        return digests

    def _match(self, tokens: Array, digests: list[bytes]) -> tuple[Array, int]:
        """Find the old row that each row continues, and the least number of tokens that a row shares with its own."""
        rows, own = len(tokens), np.arange(len(tokens))
        old, shorter = self._tokens, min(tokens.shape[1], self._tokens.shape[1])
        if self._cache is None or tokens.shape[2] != old.shape[2]:
            return own, 0
        if rows == len(old) and digests == self._digests:
            same = (tokens[:, :shorter] == old[:, :shorter]).all((0, 2))
            if same.all() or rows * rows * shorter > _MAX_COMPARED:
                return own, shorter if same.all() else int(same.argmin())
        if rows * len(old) * shorter > _MAX_COMPARED:
            return own, 0
        shared = shared_lengths(tokens, old)
        if digests or self._digests:
            shared[np.array(digests)[:, None] != np.array(self._digests)[None]] = 0
        source = shared.argmax(1)
        if rows == len(old):
            source = np.where(shared[own, own] == shared[own, source], own, source)
        return source, int(shared[own, source].min())

    def _make_room(self, source: Array, length: int, rows: int, count: int, last: bool) -> Any:
        """Return a cache, and prepare the pages, that hold `length` positions of the new rows."""
        limit = self._config.main.context
        capacity = max(2 * count, _MIN_CAPACITY)
        capacity = capacity if limit is None else min(capacity, limit)
        cache, self._cache = self._cache, None  # set again after the forward, so that an error leaves nothing stale
        if cache is None or length == 0:
            cache, self._capacity, self._pages, self._known = self._runner.new(rows, capacity), capacity, None, 0
            same = True
        else:
            cache.cut(length)
            same = rows == len(self._tokens) and bool((source == np.arange(rows)).all())
        if not same or count > self._capacity:
            self._runner.take(cache, None if same else source, capacity)
            self._capacity = capacity
        pages = self._pages
        if last:
            self._known = min(self._known, length) if same else 0
        elif pages is None:
            self._pages = Pages(rows, capacity, self._output_size)
        elif not same or count > pages.capacity or (length < pages.written and length < count):
            self._pages = pages.taken(source, length, capacity)
        return cache


def _segment_start(length: int, old: Array, new: Array, segment: int) -> int:
    """Shorten a prefix to where segment 0 ends in all rows: its tokens attend to each other, to later ones too."""
    starts: list[Array] = [np.all(tokens[:, :, segment] > 0, axis=0) for tokens in (old, new)]
    while length > 0 and not all(length == len(each) or each[length] for each in starts):
        length -= 1
    return length
