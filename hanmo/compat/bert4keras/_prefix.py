"""What a model computed last, kept so that a longer text costs only what is new: the loop of `predict` on a prefix.

Only models whose outputs at old places cannot change are helped: those that see no later token. A row of the new
inputs goes on from whichever old row shares the longest beginning with it, so samples may multiply, end and change
places. Everything else is computed whole, by the caller.
"""

import hashlib
import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.compat.bert4keras._forward import TOKENS, outputs_of
from hanmo.compat.bert4keras._pages import Pages
from hanmo.compat.bert4keras._runner import Kept, Runner
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig

Array = npt.NDArray[Any]

_MOST_COMPARED = 1 << 26  # pairs of tokens; rows beyond that are only compared in their own places
_LEAST_CAPACITY = 64


class Prefix:
    """The last inputs of a model with their keys, values and outputs.

    runner: what computes them.
    most_bytes: what may be kept; a call that would need more is not helped. 0 turns all of this off.
    """

    def __init__(self, config: ModelConfig, settings: Settings, runner: Runner, *, most_bytes: int = 4 << 30) -> None:
        self.most_bytes = most_bytes
        self._config, self._settings, self._runner = config, settings, runner
        self._lock = threading.Lock()
        self.forget()

    @staticmethod
    def helps(config: ModelConfig, settings: Settings) -> bool:
        """Tell whether a model sees no later token, and gives one output for each."""
        kinds = [what for what, _ in outputs_of(config, settings)]
        return settings.part != "encoder" and config.main.mask != "full" and kinds in (["logits"], ["hidden"])

    def forget(self) -> None:
        """Let go of everything that is kept."""
        self._process = os.getpid()
        self._cache: Kept | None = None
        self._pages: Pages | None = None
        self._known = 0  # positions of which the pages hold the outputs
        self._tokens: Array = np.empty((0, 0, 0), np.int64)
        self._named: tuple[list[Array], list[bytes]] = [], []
        self._digests: list[bytes] = []
        self._stamp = 0

    def predict(self, inputs: dict[str, Array], *, last: bool, rows_at_once: int) -> Array | None:
        """Compute the outputs of inputs, or of their last positions, from what is kept and what is new.

        Returns [rows, n, …] or [rows, 1, …], to be written into at will; None where nothing can be kept and the
        caller must compute.   rows_at_once: how many whole rows may be computed together.
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
        if self._process != os.getpid():  # after a fork the pages are still the parent's too
            self.forget()
        if stamp != self._stamp:
            self._cache = None
        source, length = self._match(tokens, digests)
        length = min(length, count - 1 if last else self._known)
        if length and self._config.main.mask == "prefix":
            length = _lowered(length, self._tokens[source], tokens, names.index("Input-Segment"))
        if rows * (count - length) > rows_at_once * count:
            self.forget()
            return None
        cache, pages = self._seats(source, length, rows, count, last)
        result: Array | None = None
        self._cache = None  # should the forward fail, nothing stays half done
        if length < count:
            (result,) = self._runner.run(inputs, start=length, kept=cache, last=last)
        if not last:
            result = self._keep(pages, length, count, result)
        self._pages, self._cache = (pages if not last or self._known else None), cache
        self._tokens, self._digests, self._stamp = tokens, digests, stamp
        return result

    def _keep(self, pages: Pages | None, length: int, count: int, new: Array | None) -> Array:
        assert pages is not None
        if new is not None:
            pages.write(length, new)
        self._known = count
        return pages.view(count)

    def _digest(self, context: list[Array]) -> list[bytes]:
        """Name the rows of what is no token, such as an encoder's output, by their contents."""
        old, digests = self._named
        if len(old) == len(context) and all(map(np.array_equal, old, context)):
            return digests
        shapes = repr([(value.shape[1:], value.dtype) for value in context]).encode()
        digests = [
            hashlib.blake2b(shapes + b"".join(value[row].tobytes() for value in context), digest_size=16).digest()
            for row in range(len(context[0]))
        ]
        self._named = [value.copy() for value in context], digests
        return digests

    def _match(self, tokens: Array, digests: list[bytes]) -> tuple[Array, int]:
        """Find for each row the old row that it goes on from; and how many tokens all of them share with theirs."""
        rows, own = len(tokens), np.arange(len(tokens))
        old, wide = self._tokens, min(tokens.shape[1], self._tokens.shape[1])
        if self._cache is None or tokens.shape[2] != old.shape[2]:
            return own, 0
        if rows == len(old) and digests == self._digests:
            same = (tokens[:, :wide] == old[:, :wide]).all((0, 2))
            if same.all() or rows * rows * wide > _MOST_COMPARED:
                return own, wide if same.all() else int(same.argmin())
        if rows * len(old) * wide > _MOST_COMPARED:
            return own, 0
        equal = (tokens[:, None, :wide] == old[None, :, :wide]).all(3)
        shared = np.where(equal.all(2), wide, equal.argmin(2)) if wide else np.zeros(equal.shape[:2], int)
        if digests or self._digests:
            shared[np.array(digests)[:, None] != np.array(self._digests)[None]] = 0
        source = shared.argmax(1)
        if rows == len(old):
            source = np.where(shared[own, own] == shared[own, source], own, source)
        return source, int(shared[own, source].min())

    def _seats(self, source: Array, length: int, rows: int, count: int, last: bool) -> tuple[Kept, Pages | None]:
        """Give a cache, and pages for the outputs if they are kept, that hold `length` positions of the new rows."""
        limit = self._config.main.context
        capacity = max(2 * count, _LEAST_CAPACITY)
        capacity = capacity if limit is None else min(capacity, limit)
        cache, pages = self._cache, self._pages
        if cache is None or length == 0:
            cache, pages, self._known = self._runner.new(rows, capacity), None, 0
            source = np.arange(rows)
        same = rows == cache.rows and bool((source == np.arange(rows)).all())
        cache.cut(length)
        if not same or count > cache.capacity:
            self._runner.take(cache, None if same else source, capacity)
        if last:
            self._known = min(self._known, length) if same else 0
        elif pages is None:
            hidden_size = self._config.vocab_size if self._asks_logits() else self._config.main.hidden_size
            pages = Pages(rows, capacity, hidden_size)
        elif not same or count > pages.capacity or (length < pages.written and length < count):
            pages = pages.taken(source, length, capacity)
        return cache, pages

    def _asks_logits(self) -> bool:
        return outputs_of(self._config, self._settings)[0][0] == "logits"


def _lowered(length: int, old: Array, new: Array, segment: int) -> int:
    """Cut back to where a new segment begins, for tokens of one segment-0 prefix see each other, later ones too."""
    starts: list[Array] = [np.all(tokens[:, :, segment] > 0, axis=0) for tokens in (old, new)]
    while length > 0 and not all(length == len(each) or each[length] for each in starts):
        length -= 1
    return length
