"""Rows of any prompts in one `Slots`, which are stepped together; they join and leave between steps.

Knows no sampling and no order of requests.

    add ──► ids are collected ──► read ──► a place in the slots ──► stepped with all others ──► free, for the next

A step computes the first places, rounded up to a power of two; those without a row write to their column 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from hanmo.inference.cuda.slots import Slots, column_bucket, row_bucket
from hanmo.model import Model
from hanmo.nn.cache import Cache

TOGETHER = 64  # ids of prompts up to which several are read at once: longer ones have work enough for the device


class SlotEngine(Protocol):
    """What rows need of `StaticEngine`."""

    model: Model
    vocab_size: int

    def read(self, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[Cache, Any]:
        """Run prompts through the model: their cache, and the logits [rows, vocab]."""

    def extend(self, cache: Cache, ids: Sequence[int]) -> Tensor:
        """Append ids to the only row of a cache: the logits [ids, vocab] behind each."""

    def acquire(self, rows: int, capacity: int, memory: int) -> Slots:
        """Take memory for so many rows, columns, and columns of an encoder's output."""

    def run(self, slots: Slots, rows: int, columns: int) -> Tensor:
        """Step the first rows over the columns in use: logits [rows, vocab], valid until the next step."""


@dataclass
class _Row:
    """A row.   room: maximum number of its ids.   place: in the slots, -1 before its prompt has been read.

    ids: of the prompt, until it is read.   length: columns in use.   source: columns of an encoder's output.
    cache: of a prompt whose logits are wanted, until a step follows it.
    """

    room: int
    place: int = -1
    ids: list[int] = field(default_factory=list)
    length: int = 0
    source: int = 0
    cache: Cache | None = None


class StaticDynamicRows:
    """Rows that join and leave; see `DynamicRows`. A prompt is read at once, at its last piece."""

    def __init__(self, engine: SlotEngine) -> None:
        self._engine = engine
        self._rows: dict[int, _Row] = {}
        self._slots: Slots | None = None
        self._numbers = count()
        self._largest = 0  # ids for which there was memory

    def size(self, rows: int, longest: int) -> int:
        """Return for how many ids rows take memory; see `SharedRows.size`."""
        sources = self._engine.model.config.is_encoder_decoder
        return row_bucket(rows) * column_bucket(longest) * (2 if sources else 1)

    def add(self, room: int) -> int:
        """Return the number of a new row; see `DynamicRows.add`."""
        return self._new(_Row(room))

    @torch.inference_mode()
    def fork(self, row: int, count: int) -> list[int]:
        """Return the numbers of copies; see `DynamicRows.fork`."""
        old = self._rows[row]
        copies = [replace(old, place=-1, cache=None) for _ in range(count)]
        slots = self._placed(copies)
        slots.take(slots, [(copy.place, old.place) for copy in copies], slots.capacity)
        return [self._new(copy) for copy in copies]

    def free(self, row: int) -> None:
        """Forget a row; another may take its place."""
        del self._rows[row]

    @torch.inference_mode()
    def step(self, work: Sequence[tuple[int, Sequence[int], int]]) -> list[Tensor]:
        """Append pieces, (row, ids, keep); see `DynamicRows.step`."""
        running = {number: ids[0] for number, ids, _ in work if self._rows[number].place >= 0 and len(ids) == 1}
        logits = self._step(running) if running else {}
        together = []
        for number, ids, keep in work:
            row = self._rows[number]
            if number in running:
                continue
            if row.place >= 0:
                logits[number] = self._extend(row, ids)
                continue
            row.ids += ids
            if not keep:
                logits[number] = torch.empty(0, self._engine.vocab_size)
            elif keep == 1 and len(row.ids) <= TOGETHER:
                together.append(number)
            else:
                first = len(row.ids) - keep + 1
                following, row.ids = row.ids[first:], row.ids[:first]
                logits |= self._read([number], room=row.room - first if following else 0)
                if following:
                    logits[number] = torch.cat([logits[number], self._extend(row, following)])
        if together:
            logits |= self._read(together)
        return [logits[number] for number, _, _ in work]

    def _new(self, row: _Row) -> int:
        number = next(self._numbers)
        self._rows[number] = row
        return number

    def _living(self) -> list[_Row]:
        """List the rows in the slots."""
        return [row for row in self._rows.values() if row.place >= 0]

    def _read(self, numbers: Sequence[int], *, room: int = 0) -> dict[int, Tensor]:
        """Read prompts and give their rows places: the logits [1, vocab] of each.

        room: number of ids with which `_extend` may go on in the cache of a single prompt; 0 keeps none.
        """
        rows = [self._rows[number] for number in numbers]
        cache, logits = self._engine.read([row.ids for row in rows], room=room)
        memory = cache.memory[0]
        for row in rows:
            row.length = cache.length if memory else len(row.ids)
            row.source = memory[0].shape[2] if memory else 0
            row.ids, row.cache = [], cache if room else None
        slots = self._placed(rows)
        slots.fill(cache, [row.place for row in rows])
        scores = torch.as_tensor(logits)
        return {number: scores[place : place + 1] for place, number in enumerate(numbers)}

    def _extend(self, row: _Row, ids: Sequence[int]) -> Tensor:
        """Go on with a prompt whose logits are wanted: those behind each of the ids."""
        assert row.cache is not None and self._slots is not None
        logits = self._engine.extend(row.cache, ids)
        row.length = row.cache.length
        self._slots.fill(row.cache, [row.place])
        return logits

    def _placed(self, rows: Sequence[_Row]) -> Slots:
        """Give new rows places in the slots, which are replaced where they are too small."""
        living = self._living()
        number, longest = len(living) + len(rows), max(row.room for row in [*living, *rows])
        slots = self._enlarged(living, number, longest, max(row.source for row in [*living, *rows]))
        used = {row.place for row in living}
        free = (place for place in range(slots.rows) if place not in used)
        for row, place in zip(rows, free, strict=False):
            row.place = place
        return slots

    def _enlarged(self, living: Sequence[_Row], rows: int, longest: int, source: int) -> Slots:
        """Return slots for so many rows, ids of one, and columns of a source: these, or others with the living rows.

        Other slots need other graphs: as many rows and columns as before are kept if so much memory was ever needed.
        """
        old = self._slots
        self._largest = max(self._largest, self.size(rows, longest))
        if old is not None:
            if old.rows >= rows and old.capacity >= longest and old.memory_capacity >= source:
                return old
            most, width = max(rows, old.rows), max(longest, old.capacity, old.memory_capacity)
            if self.size(most, width) <= self._largest:
                rows, longest, source = most, max(longest, old.capacity), max(source, old.memory_capacity)
        if not living:
            self._slots = old = None  # its memory is freed before more is allocated
        slots = self._engine.acquire(rows, longest, source)
        if old is not None:
            slots.take(old, list(enumerate(row.place for row in living)), max(row.length for row in living))
            for place, row in enumerate(living):
                row.place = place
        self._slots = slots
        return slots

    def _step(self, new: dict[int, int]) -> dict[int, Tensor]:
        """Append an id to each of some rows: their logits [1, vocab]."""
        slots, living = self._slots, self._living()
        assert slots is not None
        rows = row_bucket(len(living))
        used = {row.place for row in living}
        free = (place for place in range(rows) if place not in used)
        moved = [(next(free), row) for row in living if row.place >= rows]
        slots.take(slots, [(place, row.place) for place, row in moved], slots.capacity)
        for place, row in moved:
            row.place = place
        ids, columns = [0] * rows, [0] * rows
        for number, row in self._rows.items():
            if row.place >= 0:  # without a new id, it writes where its next one will
                ids[row.place], columns[row.place] = new.get(number, 0), min(row.length, slots.capacity - 1)
        slots.ids[:rows], slots.slot[:rows] = torch.tensor([ids, columns], device=slots.slot.device)
        found = self._engine.run(slots, rows, max(columns) + 1).to(torch.float32, copy=True)
        for number in new:
            self._rows[number].length += 1
            self._rows[number].cache = None
        return {number: found[row.place : row.place + 1] for number, row in self._rows.items() if number in new}
