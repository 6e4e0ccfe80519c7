"""Prompts that were read before: an engine around the CPU engine whose `prefill` reads only what is new.

    rows that nobody holds any more ──► kept, with the ids that they have read
    prompt ──► the kept row that shares its longest beginning ──► a copy up to there ──► the rest of the prompt is read

A text that is still being written is never touched: streams may take turns, or run in threads. Knows ids, and nothing
of how a cache looks inside.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.inference.openvino.engine import OpenVinoEngine, OpenVinoRows

__all__ = ["PromptCache"]

Array = npt.NDArray[Any]

# Copying a kept text costs for its whole length, about a twentieth of reading it again.
_LEAST_SHARE = 16


@dataclass(eq=False)
class _Kept:
    """Rows and what they have read; texts is None while that is not certain.

    ends: a length at which a prompt ended, the same in all rows → the logits [1, vocab] that were given there.
    """

    rows: OpenVinoRows
    texts: list[list[int]] | None
    ends: dict[int, Array] = field(default_factory=dict)

    def nbytes(self, token: int) -> int:
        """Count what is held, a token of a row being so many bytes."""
        return token * sum(map(len, self.texts or ())) + sum(logits.nbytes for logits in self.ends.values())


class PromptCache:
    """An `Engine` that remembers the last texts of another, so that it reads only what is new in a prompt.

    In float32 logits differ from that engine's own by less than 1e-5. In other kinds they differ by what is rounded, as
    between batches, and a text that is drawn or even the likeliest may be another. A prompt that is read a second time
    gets the very logits of the first.
    most: how many texts are kept.   most_bytes: and how much memory they take.
    Only prompts that are alone are helped, of models that read from left to right.
    """

    def __init__(self, engine: OpenVinoEngine, *, most: int = 4, most_bytes: int = 256 << 20) -> None:
        self._engine, self._most, self._most_bytes = engine, most, most_bytes
        self._helps = engine.config.main.mask == "causal" and not engine.config.is_encoder_decoder
        self._kept: list[_Kept] = []  # the last used one last
        self._back: deque[_Kept] = deque()  # not yet looked at: they may come back at any moment, in any thread
        self._lock = Lock()

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._engine.vocab_size

    @property
    def max_positions(self) -> int | None:
        """The most ids of a row."""
        return self._engine.max_positions

    @property
    def nbytes(self) -> int:
        """How much memory is kept."""
        self._settle()
        return sum(kept.nbytes(self._engine.token_bytes) for kept in self._kept)

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Any, Array]:
        """Read prompts; see `Engine.prefill`."""
        if len(prompts) != 1 or not self._helps:
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
        found.texts = [prompt]
        lent = _Lent(found)
        weakref.finalize(lent, self._take_back, found).atexit = False
        return lent, logits

    def _find(self, prompt: list[int]) -> _Kept | None:
        """Give rows of its own that have read a beginning of the prompt, the longest there is."""
        best, most = None, 0
        for kept in self._kept:
            for row, text in enumerate(kept.texts or ()):
                shared = _shared(text, prompt)
                if shared == len(prompt) and shared not in kept.ends:
                    shared -= 1  # one id must be read, for its logits
                if shared > most and shared * _LEAST_SHARE >= sum(map(len, kept.texts or ())):
                    best, most = (kept, row, text), shared
        if best is None:
            return None
        kept, row, text = best
        self._kept.remove(kept)
        ends = {length: logits for length, logits in kept.ends.items() if length <= most}
        if len(kept.texts or ()) == 1 and len(text) == most:
            return _Kept(kept.rows, None, ends)  # nothing of it would be left out
        self._kept.append(kept)
        return _Kept(kept.rows.copy(row, most), None, ends)

    def _take_back(self, kept: _Kept) -> None:
        """Keep rows that nobody holds any more. May be called wherever Python frees an object, so it never waits."""
        self._back.append(kept)
        self._settle(wait=False)

    def _settle(self, *, wait: bool = True) -> None:
        if not self._lock.acquire(blocking=wait):
            return
        try:
            while self._back:
                kept = self._back.popleft()
                if kept.texts is not None:
                    self._kept.append(kept)
            sizes = [kept.nbytes(self._engine.token_bytes) for kept in self._kept]
            while self._kept and (len(self._kept) > self._most or sum(sizes) > self._most_bytes):
                del self._kept[0], sizes[0]
        finally:
            self._lock.release()


class _Lent:
    """Rows in use; see `Rows`. What they read is written down."""

    def __init__(self, kept: _Kept) -> None:
        self._kept = kept

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row; see `Rows.step`."""
        texts, self._kept.texts = self._kept.texts, None  # should the step be interrupted, nobody knows what it read
        logits = self._kept.rows.step(ids)
        if texts is not None:
            self._kept.texts = [[*text, int(id)] for text, id in zip(texts, ids, strict=True)]
        return logits

    def reorder(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; see `Rows.reorder`."""
        texts, self._kept.texts = self._kept.texts, None
        self._kept.rows.reorder(rows)
        if texts is not None:
            self._kept.texts = [texts[row] for row in rows]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the ids that two texts begin with alike."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
