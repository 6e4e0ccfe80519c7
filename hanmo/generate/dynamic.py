"""The interface of an engine whose rows join and leave a running batch, and a substitute over any `Engine`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import NamedTuple, Protocol, runtime_checkable

import array_api_compat
import numpy as np

from hanmo.generate.loop import Engine, Rows
from hanmo.generate.rules import Array


class Piece(NamedTuple):
    """Ids to append to a row.   keep: of how many of the last ids the logits are returned, from 0 to all."""

    row: int
    ids: Sequence[int]
    keep: int = 1


class DynamicRows(Protocol):
    """Rows of different lengths, each with a cache of its own; they are named by numbers."""

    def add(self, room: int) -> int:
        """Return the number of a new, empty row.   room: maximum number of ids that it will hold."""

    def fork(self, row: int, count: int) -> list[int]:
        """Return the numbers of `count` new rows, copies of one whose prompt has just been read."""

    def free(self, row: int) -> None:
        """Forget a row and free its cache."""

    def step(self, work: Sequence[Piece]) -> list[Array]:
        """Append each piece to its row, one piece a row at most: for each the logits [keep, vocab_size].

        After an error the rows in `work` can only be freed.
        """


@runtime_checkable
class DynamicEngine(Engine, Protocol):
    """An engine with rows that join and leave."""

    def dynamic_rows(self) -> DynamicRows | None:
        """Return `DynamicRows` without a row, or None where its rows only run in turn."""


def dynamic_rows(engine: Engine) -> DynamicRows:
    """Return the engine's `DynamicRows`, or else prompts of their own that are stepped in turn."""
    found = engine.dynamic_rows() if isinstance(engine, DynamicEngine) else None
    return _RowsInTurn(engine) if found is None else found


def is_dynamic(engine: Engine) -> bool:
    """Tell whether an engine computes rows of different lengths together."""
    return not isinstance(dynamic_rows(engine), _RowsInTurn)


@dataclass(eq=False)
class _Group:
    """The rows of one prompt.   numbers: of its rows, in the order of the cache.   pending: ids not yet read."""

    room: int
    numbers: list[int]
    pending: list[int] = field(default_factory=list)
    cache: Rows | None = None


class _RowsInTurn:
    """A `Rows` for each prompt and its forks, stepped one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._groups: dict[int, _Group] = {}  # by row
        self._numbers = count()

    def add(self, room: int) -> int:
        number = next(self._numbers)
        self._groups[number] = _Group(room, [number])
        return number

    def fork(self, row: int, count: int) -> list[int]:
        group, new = self._groups[row], list(islice(self._numbers, count))
        assert group.cache is not None
        group.cache.reorder([0] * (count + 1))
        group.numbers += new
        self._groups |= dict.fromkeys(new, group)
        return new

    def free(self, row: int) -> None:
        del self._groups[row]

    def step(self, work: Sequence[Piece]) -> list[Array]:
        pieces = {piece.row: piece for piece in work}
        logits: dict[int, Array] = {}
        for row, piece in pieces.items():
            group = self._groups[row]
            if group.cache is None or len(piece.ids) > 1:
                logits[row] = self._read(group, piece)
            elif row not in logits:
                logits |= self._step(group, pieces)
        return [logits[piece.row] for piece in work]

    def _read(self, group: _Group, piece: Piece) -> Array:
        """Read a part of a prompt: at once, but for ids whose logits are wanted."""
        group.pending += piece.ids
        if not piece.keep:
            return np.empty((0, self._engine.vocab_size), np.float32)
        ids, group.pending = group.pending, []
        logits = []
        if group.cache is None:
            first = len(ids) - piece.keep + 1
            group.cache, scores = self._engine.prefill([ids[:first]], room=group.room - first)
            ids, logits = ids[first:], [scores]
        logits += [group.cache.step([id]) for id in ids]
        return array_api_compat.array_namespace(logits[0]).concat(logits)[-piece.keep :]

    def _step(self, group: _Group, pieces: dict[int, Piece]) -> dict[int, Array]:
        """Append an id to all rows of a group that are not freed."""
        assert group.cache is not None
        kept = [place for place, number in enumerate(group.numbers) if number in self._groups]
        if len(kept) < len(group.numbers):
            group.cache.reorder(kept)
            group.numbers = [group.numbers[place] for place in kept]
        logits = group.cache.step([pieces[number].ids[0] for number in group.numbers])
        return {number: logits[place : place + 1] for place, number in enumerate(group.numbers)}
