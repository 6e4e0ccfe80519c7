"""The interface of an engine whose rows join and leave a running batch, and a substitute over any `Engine`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
class ExactRows(DynamicRows, Protocol):
    """Rows whose logits are the same bits in any company and however their ids are divided into pieces."""

    def drop(self, row: int, count: int) -> None:
        """Forget the last ids of a row."""


@runtime_checkable
class SharedRows(DynamicRows, Protocol):
    """Rows in one memory, of which each takes as much as the longest."""

    def size(self, rows: int, longest: int) -> int:
        """Return for how many ids there is memory when so many rows are in it.   longest: maximum ids of one."""


@runtime_checkable
class DynamicEngine(Engine, Protocol):
    """An engine with rows that join and leave."""

    def dynamic_rows(self) -> DynamicRows | None:
        """Return `DynamicRows` without a row, or None where its rows only run in turn."""


class JoinableRows(Rows, Protocol):
    """Rows that others can join."""

    def join(self, other: Any) -> None:
        """Append the rows of another `prefill`; the shorter ones are padded on the left, which masks hide."""


def dynamic_rows(engine: Engine) -> DynamicRows:
    """Return the engine's own, those that join one cache, or else prompts of their own that are stepped in turn.

    An engine whose attribute `joins` is true returns `JoinableRows` from `prefill`.
    """
    if isinstance(engine, DynamicEngine) and (found := engine.dynamic_rows()) is not None:
        return found
    return _JoinedRows(engine) if getattr(engine, "joins", False) else _RowsInTurn(engine)


def is_dynamic(engine: Engine) -> bool:
    """Tell whether an engine computes rows of different lengths together, each as it would alone, bit for bit."""
    return isinstance(engine, DynamicEngine) and isinstance(engine.dynamic_rows(), ExactRows)


def needed_ids(rows: DynamicRows, lengths: Sequence[int]) -> int:
    """Return for how many ids rows of these maximum lengths take memory."""
    return rows.size(len(lengths), max(lengths)) if lengths and isinstance(rows, SharedRows) else sum(lengths)


def _read(engine: Engine, ids: list[int], keep: int, room: int) -> tuple[Rows, Array]:
    """Read a prompt, then its last ids whose logits are wanted: its rows, and these logits [keep, vocab_size]."""
    first = len(ids) - keep + 1
    rows, scores = engine.prefill([ids[:first]], room=room - first)
    return rows, _extend(rows, ids[first:], [scores])


def _extend(rows: Rows, ids: Sequence[int], logits: Sequence[Array] = ()) -> Array:
    """Append ids to a single row, at once if it has `extend`, and return all logits, behind those given."""
    extend = getattr(rows, "extend", None)
    found = [*logits, *([extend(ids)] if extend and ids else (rows.step([id]) for id in ids))]
    return array_api_compat.array_namespace(found[0]).concat(found)


_TOGETHER = 64  # ids of prompts up to which several are read at once: a longer one has enough for the processor


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
        group.pending += piece.ids
        if not piece.keep:
            return np.empty((0, self._engine.vocab_size), np.float32)
        ids, group.pending = group.pending, []
        if group.cache is not None:
            return _extend(group.cache, ids)[-piece.keep :]
        group.cache, logits = _read(self._engine, ids, piece.keep, group.room)
        return logits

    def _step(self, group: _Group, pieces: dict[int, Piece]) -> dict[int, Array]:
        """Append an id to all rows of a group that are not freed."""
        assert group.cache is not None
        kept = [place for place, number in enumerate(group.numbers) if number in self._groups]
        if len(kept) < len(group.numbers):
            group.cache.reorder(kept)
            group.numbers = [group.numbers[place] for place in kept]
        logits = group.cache.step([pieces[number].ids[0] for number in group.numbers])
        return {number: logits[place : place + 1] for place, number in enumerate(group.numbers)}


class _JoinedRows:
    """All rows in one `Rows`, which those of a prompt join at their first step.

    Short prompts of one step are read together. Rows that were read and have not been stepped are in `_fresh`, the
    others in `_rows`, each with the numbers of its rows.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rooms: dict[int, int] = {}  # of the rows that are not freed
        self._pending: dict[int, list[int]] = {}  # ids of prompts that are not read
        self._fresh: list[tuple[Any, list[int]]] = []
        self._rows: Any = None
        self._names: list[int] = []
        self._numbers = count()

    def size(self, rows: int, longest: int) -> int:
        return rows * longest

    def add(self, room: int) -> int:
        number = next(self._numbers)
        self._rooms[number], self._pending[number] = room, []
        return number

    def fork(self, row: int, count: int) -> list[int]:
        new = list(islice(self._numbers, count))
        rows, names = next(pair for pair in [*self._fresh, (self._rows, self._names)] if row in pair[1])
        rows.reorder([*range(len(names)), *[names.index(row)] * count])
        names += new
        self._rooms |= dict.fromkeys(new, self._rooms[row])
        return new

    def free(self, row: int) -> None:
        del self._rooms[row]
        self._pending.pop(row, None)

    def step(self, work: Sequence[Piece]) -> list[Array]:
        logits: dict[int, Array] = {}
        running = {}
        for piece in work:
            if piece.row in self._pending:
                self._pending[piece.row] += piece.ids
            elif len(piece.ids) == 1:
                running[piece.row] = piece.ids[0]
            else:  # of a prompt whose logits are wanted
                rows = next(rows for rows, names in self._fresh if names == [piece.row])
                logits[piece.row] = _extend(rows, piece.ids)[-piece.keep :]
        if running:
            logits |= self._step(running)
        together = []
        for piece in work:
            if piece.row not in self._pending:
                continue
            if not piece.keep:
                logits[piece.row] = np.empty((0, self._engine.vocab_size), np.float32)
            elif piece.keep == 1 and len(self._pending[piece.row]) <= _TOGETHER:
                together.append(piece.row)
            else:
                ids = self._pending.pop(piece.row)
                rows, logits[piece.row] = _read(self._engine, ids, piece.keep, self._rooms[piece.row])
                self._fresh.append((rows, [piece.row]))
        if together:
            prompts = [self._pending.pop(row) for row in together]
            room = max(self._rooms[row] - len(ids) for row, ids in zip(together, prompts, strict=True))
            rows, scores = self._engine.prefill(prompts, room=room)
            self._fresh.append((rows, together))
            logits |= {row: scores[place : place + 1] for place, row in enumerate(together)}
        return [logits[piece.row] for piece in work]

    def _step(self, ids: dict[int, int]) -> dict[int, Array]:
        """Append an id to all rows that are not freed; those that were just read join the others."""
        parts = [(self._rows, self._names)] if self._names else []
        self._rows, self._names = None, []
        waiting = [pair for pair in self._fresh if not any(row in ids for row in pair[1]) and self._live(pair[1])]
        parts += [pair for pair in self._fresh if pair not in waiting]
        self._fresh = waiting
        for rows, names in parts:
            kept = self._live(names)
            if 0 < len(kept) < len(names):
                rows.reorder(kept)
            if kept and self._rows is None:
                self._rows = rows
            elif kept:
                self._rows.join(rows)
            self._names += [names[place] for place in kept]
        logits = self._rows.step([ids[row] for row in self._names])
        return {row: logits[place : place + 1] for place, row in enumerate(self._names)}

    def _live(self, names: Sequence[int]) -> list[int]:
        return [place for place, row in enumerate(names) if row in self._rooms]
