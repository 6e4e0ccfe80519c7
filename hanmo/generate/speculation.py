"""Speculation by prompt lookup: ids that followed the last n-gram before are a draft, which one step verifies.

Saxena, "Prompt lookup decoding", 2023. The rules and the draw choose every id from the logits behind the ids before it,
as without drafts; a draft saves a step where it agrees and is dropped where it does not. So no text changes.

    id ──► lookup ──► draft ──► one step over id and draft ──► logits behind each ──► kept while the ids agree
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from hanmo.generate.dynamic import is_dynamic
from hanmo.generate.loop import Engine, Rows
from hanmo.generate.rules import Array

MAX_TOKENS = 16  # of a step, over all rows: so many cost the fused step little more than one
_SIZE = 2  # of the n-grams
_START = 0.25  # chance of agreement before any is counted
_PACE = 0.125  # weight of the last id in that chance
_COST = 0.2  # of one more token in a step of one row, in steps; measured 0.1, the rest is the margin


class PromptLookup:
    """Drafts for one text, which begins with `ids`.

    Every id of the text is compared with the one that followed the last n-gram where it occurred before, whether it was
    drafted or not. The share of equal ones decides the length of a draft, so that text without repetition has none.
    """

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram → the place behind its last occurrence
        self._next: int | None = None  # place of the id that the draft begins with
        self._chance = 0.0
        for id in ids:
            self.append(id)
        self._chance = _START

    def copy(self) -> "PromptLookup":
        """Return a lookup for a text that has the same ids so far."""
        new = PromptLookup()
        new._ids, new._after, new._next = self._ids.copy(), self._after.copy(), self._next
        new._chance = self._chance
        return new

    def append(self, id: int) -> None:
        """Add the next id of the text."""
        if self._next is not None:
            self._chance += _PACE * ((self._ids[self._next] == id) - self._chance)
        self._ids.append(id)
        ngram = tuple(self._ids[-_SIZE:])
        self._next = self._after.get(ngram)
        self._after[ngram] = len(self._ids)

    def draft(self, most: int, *, rows: int = 1) -> list[int]:
        """Return up to `most` ids that may follow: those whose chance of being kept exceeds the cost of computing them.

        rows: that share the step; with more of them a kept id saves less.
        """
        found: list[int] = []
        chance = self._chance
        while self._next is not None and len(found) < most and chance > _COST * rows:
            period = len(self._ids) - self._next  # a draft that reaches the end of the text repeats
            found.append(self._ids[self._next + len(found) % period])
            chance *= self._chance
        return found


@runtime_checkable
class ExtendableRows(Rows, Protocol):
    """Rows of a `DynamicEngine`: logits are the same bits however ids are divided into steps."""

    def extend(self, ids: Sequence[int]) -> Array:
        """Append ids to the only row and return the logits [ids, vocab_size] behind each."""

    def drop(self, count: int) -> None:
        """Forget the last ids of every row."""


class SpeculativeEngine:
    """An `Engine` over one for which `is_dynamic` holds: while it has one row, a step also computes a draft."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.vocab_size, self.max_positions = engine.vocab_size, engine.max_positions

    def prefill(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Rows, Array]:
        """Process prompts; see `Engine.prefill`. Rows of several prompts have no drafts."""
        rows, logits = self._engine.prefill(prompts, room=room)
        if len(prompts) > 1 or not isinstance(rows, ExtendableRows):
            return rows, logits
        return _SpeculativeRows(rows, PromptLookup(prompts[0]), room), logits


def speculative(engine: Engine) -> Engine:
    """Return an engine that drafts, or the engine itself where a draft might change its logits."""
    return SpeculativeEngine(engine) if is_dynamic(engine) else engine


class _SpeculativeRows:
    """The rows of one prompt.   room: number of ids that may be appended to a row."""

    def __init__(self, rows: ExtendableRows, lookup: PromptLookup, room: int) -> None:
        self._rows, self._lookups, self._room = rows, [lookup], room
        self._draft: list[int] = []  # ids of the only row's cache that its text does not have yet
        self._logits: Any = None  # behind its last id and behind those of the draft

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row; see `Rows.step`."""
        self._room -= 1
        for lookup, id in zip(self._lookups, ids, strict=True):
            lookup.append(id)
        if len(ids) > 1:
            return self._rows.step(ids)
        if self._draft[:1] == list(ids):
            self._draft, self._logits = self._draft[1:], self._logits[1:]
        else:
            self._forget()
            self._draft = self._lookups[0].draft(min(MAX_TOKENS - 1, self._room - 1))
            self._logits = self._rows.extend([*ids, *self._draft])
        return self._logits[:1]

    def reorder(self, rows: Sequence[int]) -> None:
        """Make new row i a copy of old row rows[i]; see `Rows.reorder`."""
        self._forget()
        self._rows.reorder(rows)
        self._lookups = [self._lookups[row].copy() for row in rows]

    def _forget(self) -> None:
        if self._draft:
            self._rows.drop(len(self._draft))
            self._draft = []
