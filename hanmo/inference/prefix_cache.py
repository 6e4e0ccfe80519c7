"""Prefix cache of the CPU engine: `prefill` computes only the tokens that no earlier text has.

    rows that are no longer in use ──► kept, with the ids that they have seen
    prompt ──► the kept row with the longest shared prefix ──► a copy up to there ──► the rest of the prompt is computed

Rows in use are never changed, so streams may alternate or run in threads. `shared_lengths` serves the prefix cache of
`hanmo.compat` too, which keeps one batch of any inputs instead of single rows.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from hanmo.checkpoint.source import Array

if TYPE_CHECKING:
    from hanmo.inference.openvino.engine import OpenVinoEngine
    from hanmo.inference.openvino.rows import OpenVinoRows

__all__ = ["PromptCache", "shared_lengths"]

# A kept row is copied at its full length, which costs about a twentieth of computing it again.
_MIN_SHARE = 16


def shared_lengths(tokens: Array, others: Array) -> Array:
    """Count the leading tokens that each row shares with each of the other rows: [rows, other rows].

    tokens, others: [rows, length] or [rows, length, values of a token]; all values of a token must be equal.
    """
    length = min(tokens.shape[1], others.shape[1])
    equal = tokens[:, None, :length] == others[None, :, :length]
    equal = equal.reshape(*equal.shape[:3], -1).all(3)
    end = np.zeros((*equal.shape[:2], 1), bool)
    return np.concatenate([equal, end], 2).argmin(2)


@dataclass(eq=False)
class _Kept:
    """Rows and the ids that they have seen, [rows, length]; None while a step is running or after it failed.

    ends: the length of a prompt → the logits [1, vocab] at its end.
    """

    rows: "OpenVinoRows"
    texts: Array | None
    ends: dict[int, Array] = field(default_factory=dict)

    def nbytes(self, token: int) -> int:
        """Count the bytes that are kept; token: bytes of the keys and values of one token."""
        size = 0 if self.texts is None else self.texts.size
        return token * size + sum(logits.nbytes for logits in self.ends.values())


class PromptCache:
    """An `Engine` that keeps the last texts of another, and computes only the new tokens of a prompt.

    With the fused step, logits are the engine's own; in float32 they differ by less than 1e-5. Otherwise they differ by
    rounding, as between batches, which may change a text, sampled or greedy. A prompt given a second time gets
    identical logits.
    most: texts to keep.   most_bytes: memory limit of these.
    Only single prompts to models with a causal mask are cached.
    """

    def __init__(self, engine: "OpenVinoEngine", *, most: int = 4, most_bytes: int = 256 << 20) -> None:
        self._engine, self._most, self._most_bytes = engine, most, most_bytes
        self.vocab_size, self.max_positions = engine.vocab_size, engine.max_positions
        self._supported = engine.config.main.mask == "causal" and not engine.config.is_encoder_decoder
        self._kept: list[_Kept] = []  # the most recently used last
        self._back: deque[_Kept] = deque()  # released at any time, in any thread; moved to _kept by _settle
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        self._settle()
        return sum(kept.nbytes(self._engine.token_bytes) for kept in self._kept)

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Any, Array]:
        """Compute prompts; see `Engine.prefill`."""
        if len(prompts) != 1 or not self._supported:
            return self._engine.prefill(prompts, room=room)
        prompt = [int(id) for id in prompts[0]]
        self._settle()
        with self._lock:
            found = self._find(prompt)
        if found is None:
            rows, logits = self._engine.prefill(prompts, room=room)
            found = _Kept(rows, None)
        elif (length := found.rows.length) == len(prompt):
            logits = found.ends[length]
        else:
            logits = found.rows.run(np.array([prompt[length:]]))[:, -1]
        found.ends[len(prompt)] = logits.copy()
        found.texts = np.array([prompt])
        rows_in_use = _Rows(found)
        weakref.finalize(rows_in_use, self._release, found).atexit = False
        return rows_in_use, logits

    def dynamic_rows(self) -> Any:
        """Return the engine's own, without the cache; see `DynamicEngine`."""
        return self._engine.dynamic_rows()

    def _find(self, prompt: list[int]) -> _Kept | None:
        """Return rows of their own that hold the longest kept prefix of the prompt."""
        best, most = None, 0
        for kept in self._kept:
            assert kept.texts is not None
            lengths = shared_lengths(np.array([prompt]), kept.texts)[0]
            row = int(lengths.argmax())
            shared = int(lengths[row])
            if shared == len(prompt) and shared not in kept.ends:
                shared -= 1  # one id must be computed, for its logits
            if shared > most and shared * _MIN_SHARE >= kept.texts.size:
                best, most = (kept, row, kept.texts.shape), shared
        if best is None:
            return None
        kept, row, shape = best
        self._kept.remove(kept)
        ends = {length: logits for length, logits in kept.ends.items() if length <= most}
        if shape == (1, most):
            return _Kept(kept.rows, None, ends)  # all of it is used
        self._kept.append(kept)
        return _Kept(kept.rows.copy(row, most), None, ends)

    def _release(self, kept: _Kept) -> None:
        """Keep rows that are no longer in use. A finalizer may run in any thread at any point, so it never waits."""
        self._back.append(kept)
        self._settle(wait=False)

    def _settle(self, *, wait: bool = True) -> None:
        if not self._lock.acquire(blocking=wait):
            return
        try:
            while self._back:
                kept = self._back.popleft()
                if kept.texts is not None and len(kept.texts):
                    self._kept.append(kept)
            sizes = [kept.nbytes(self._engine.token_bytes) for kept in self._kept]
            while self._kept and (len(self._kept) > self._most or sum(sizes) > self._most_bytes):
                del self._kept[0], sizes[0]
        finally:
            self._lock.release()


class _Rows:
    """Rows in use, whose ids are recorded; see `Rows`."""

    def __init__(self, kept: _Kept) -> None:
        self._kept = kept

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row; see `Rows.step`."""
        with self._changing(lambda texts: np.column_stack([texts, ids])):
            return self._kept.rows.step(ids)

    def extend(self, ids: Sequence[int]) -> Array:
        """Append ids to the only row; see `ExtendableRows.extend`."""
        with self._changing(lambda texts: np.column_stack([texts, [ids]])):
            return self._kept.rows.extend(ids)

    def drop(self, count: int) -> None:
        """Forget the last ids of every row; see `ExtendableRows.drop`."""
        with self._changing(lambda texts: texts[:, : texts.shape[1] - count]):
            self._kept.rows.drop(count)

    def reorder(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; see `Rows.reorder`."""
        with self._changing(lambda texts: texts[list(rows)]):
            self._kept.rows.reorder(rows)

    @contextmanager
    def _changing(self, record: Callable[[Array], Array]) -> Iterator[None]:
        """Record what a change makes of the texts; an interrupted one leaves the rows in an unknown state."""
        texts, self._kept.texts = self._kept.texts, None
        yield
        if texts is not None:
            self._kept.texts = record(texts)
