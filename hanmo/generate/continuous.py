"""Continuous batching: rows join and leave while others are generated; each has settings of its own.

Knows no threads and no text. What a row is given depends on its request alone, as in `loop.sample`.

    submit ──► waiting ──admit──► reading, at most prompt_ids a step ──► running ──► Token, End ──► emit
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby

import array_api_compat

from hanmo.errors import ConfigError, HanmoError
from hanmo.generate import rules
from hanmo.generate.draw import check_seed, checked, choose, uniform
from hanmo.generate.dynamic import ExactRows, Piece, SharedRows, dynamic_rows, needed_ids
from hanmo.generate.loop import End, Engine, LogProbs, Token, check_prompt, log_probs, room_behind
from hanmo.generate.rules import Array
from hanmo.generate.sampling import Sampling
from hanmo.generate.speculation import MAX_TOKENS, PromptLookup
from hanmo.generate.ticket import Event, Failed, Prompt, RowRequest, Stats, Ticket

_SCORED = 64  # ids of a scored prompt in a step: the logits behind each are computed and ranked while other rows wait


@dataclass(eq=False)
class _Row:
    ticket: Ticket
    number: int
    request: RowRequest
    past: list[int]  # ids that the repetition rules see
    room: int  # maximum number of new ids
    name: int = -1  # of the engine's row
    written: int = 0
    lookup: PromptLookup | None = None
    draft: Sequence[int] = ()

    @property
    def most_ids(self) -> int:
        return len(self.request.prompt) + self.room


@dataclass(eq=False)
class _Reading:
    """The rows of a ticket with the same prompt, until it has been read.   done: number of its ids that have been."""

    rows: list[_Row]
    name: int = -1
    done: int = 0
    logprobs: list[LogProbs | None] = field(default_factory=lambda: [None])

    @property
    def prompt(self) -> Sequence[int]:
        return self.rows[0].request.prompt

    @property
    def scored(self) -> bool:
        return any(row.request.prompt_logprobs for row in self.rows)

    def live(self) -> list[_Row]:
        return [row for row in self.rows if not row.ticket.ended]


class ContinuousBatch:
    """The rows of one engine.

    max_rows: that run at once.   cache_ids: ids for which the caches of these have room; None is no limit.
    prompt_ids: maximum number of ids of prompts that a step takes, of scored ones 64. Of the others only the fused step
    of a causal model reads them as they come; other rows read a prompt at once when its last ids are taken.
    """

    def __init__(
        self, engine: Engine, *, max_rows: int = 32, cache_ids: int | None = None, prompt_ids: int = 512
    ) -> None:
        rules.check_count("max_rows", max_rows)
        rules.check_count("prompt_ids", prompt_ids)
        self._engine, self._max_rows, self._prompt_ids = engine, max_rows, prompt_ids
        self._cache_ids = sys.maxsize if cache_ids is None else cache_ids
        self._rows = rows = dynamic_rows(engine)
        self._exact = rows if isinstance(rows, ExactRows) else None  # the same, where drafts change no text
        self._apart = isinstance(rows, ExactRows | SharedRows)  # samples of a prompt may begin one after the other
        self._waiting: deque[list[_Row]] = deque()  # rows of a ticket with the same prompt
        self._reading: list[_Reading] = []
        self._running: list[_Row] = []
        self._tokens = self._prompts = self._steps = 0

    @property
    def busy(self) -> bool:
        """Whether a row waits or runs."""
        return bool(self._waiting or self._reading or self._running)

    @property
    def stats(self) -> Stats:
        """The numbers at this moment."""
        reading = [row for each in self._reading for row in each.rows]
        ids = sum(each.done for each in self._reading)
        ids += sum(len(row.request.prompt) + row.written for row in self._running)
        waiting = sum(len(rows) for rows in self._waiting if not rows[0].ticket.ended)
        running = len(reading) + len(self._running)
        return Stats(waiting, running, ids, self._tokens, self._prompts, self._steps)

    def submit(self, requests: Sequence[RowRequest], emit: Callable[[Event], None]) -> Ticket:
        """Let rows wait for `step`.   emit: called with their events; row i is requests[i].

        Raises PromptError for a prompt that cannot be continued, ConfigError for a setting.
        """
        ticket = Ticket(emit)
        rows = [self._row(ticket, number, request) for number, request in enumerate(requests)]
        self._waiting += [list(same) for _, same in groupby(rows, lambda row: tuple(row.request.prompt))]
        return ticket

    def check_fits(self, rows: int, ids: int) -> None:
        """Raise ConfigError if the caches have no room for so many rows of so many ids each."""
        if (needed := needed_ids(self._rows, [ids] * rows)) > self._cache_ids:
            rounded = f" (rounded up to {needed})" if needed > rows * ids else ""
            raise ConfigError(
                f"{rows} x {ids} tokens{rounded}, prompt and text, do not fit the caches, which have room for "
                f"{self._cache_ids}; ask for fewer tokens"
            )

    def _fitting(self, rows: Sequence[_Row], beside: Sequence[int] = ()) -> int:
        """Return how many of a prompt's rows fit.   beside: maximum ids of the rows that run."""
        lengths = [*beside, *(row.most_ids for row in rows[: max(0, self._max_rows - len(beside))])]
        while len(lengths) > len(beside) and needed_ids(self._rows, lengths) > self._cache_ids:
            lengths.pop()
        return len(lengths) - len(beside)

    def _row(self, ticket: Ticket, number: int, request: RowRequest) -> _Row:
        check_prompt(self._engine, request.prompt)
        check_seed(request.seed)
        rules.check_count("sample", request.sample, least=0, most=2**64 - 1)
        vocab_size, sampling, limits = self._engine.vocab_size, request.sampling, request.limits
        if request.prompt_logprobs and not request.history:
            raise ConfigError("prompt_logprobs are those of a text that is continued, and this prompt is a source")
        if request.top_logprobs is not None:
            rules.check_count("top_logprobs", request.top_logprobs, least=0, most=vocab_size)
        rules.check_ids("banned", sampling.banned, vocab_size)
        rules.check_ids("allowed", sampling.allowed or (), vocab_size)
        rules.check_ids("bias", [id for id, _ in sampling.bias], vocab_size)
        rules.check_ids("end_ids", limits.end_ids, vocab_size)
        room = room_behind(self._engine, request.prompt, limits)
        self.check_fits(1, len(request.prompt) + room)
        return _Row(ticket, number, request, list(request.prompt) if request.history else [], room)

    def admit(self) -> None:
        """Free the rows of cancelled tickets, and let waiting rows join in their order while there is room."""
        self._drop_ended()
        self._waiting = deque(rows for rows in self._waiting if not rows[0].ticket.ended)
        sizes = [row.most_ids for row in (*self._running, *(row for each in self._reading for row in each.rows))]
        while self._waiting:
            rows = self._waiting[0]
            count, most = self._fitting(rows, sizes), self._fitting(rows)
            if count < (max(1, most // 2) if self._apart else most):  # halves, as each group reads the prompt again
                return
            joining, rows[:count] = rows[:count], []
            if not rows:
                self._waiting.popleft()
            first = _Reading([row for row in joining if row.room or row.request.prompt_logprobs])
            for row in joining:
                if row not in first.rows:
                    row.ticket.emit(End(row.number, "context"))
            if not first.rows:
                continue
            try:
                first.name = self._rows.add(len(first.prompt) + max(row.room for row in first.rows))
            except (HanmoError, MemoryError, RuntimeError) as error:  # RuntimeError: of torch and OpenVINO
                self._fail(first.rows[0], error)
                continue
            self._reading.append(first)
            sizes += [row.most_ids for row in first.rows]

    def step(self) -> None:
        """Run the engine once and emit what follows. After an error, call `fail`."""
        self._draft()
        work = [Piece(row.name, [*row.past[-1:], *row.draft], 1 + len(row.draft)) for row in self._running]
        budget, read = self._prompt_ids, []
        for each in self._reading:
            # Where a prompt is divided depends on itself alone, as the division may change how sums are rounded.
            most = min(self._prompt_ids, _SCORED) if each.scored else self._prompt_ids
            ids = each.prompt[each.done : each.done + most]
            cost = len(ids) * (self._prompt_ids // most)
            if cost > budget:
                break
            budget -= cost
            keep = len(ids) if each.scored else int(each.done + len(ids) == len(each.prompt))
            work.append(Piece(each.name, ids, keep))
            read.append(each)
        if not work:
            return
        logits = self._rows.step(work)
        self._steps += 1
        running, scores = list(self._running), logits[: len(self._running)]
        for each, piece, found in zip(read, work[len(running) :], logits[len(running) :], strict=True):
            each.done += len(piece.ids)
            self._prompts += len(piece.ids)
            if each.scored:
                self._score_prompt(each, piece.ids, found)
            if each.done == len(each.prompt):
                started = self._start(each)
                running += started
                scores += [found[-1:]] * len(started)
        self._verify(running, scores)
        self._drop_ended()

    def fail(self, error: BaseException, *, waiting: bool = False) -> None:
        """End the tickets whose rows run with an error.   waiting: those whose rows wait too."""
        rows = self._running + [row for each in self._reading for row in each.rows]
        if waiting:
            rows += [row for each in self._waiting for row in each]
            self._waiting.clear()
        for row in rows:
            self._fail(row, error)
        self._drop_ended()

    def _start(self, read: _Reading) -> list[_Row]:
        """Let the rows of a prompt that has been read run. After an error they are still in `_reading`."""
        live = read.live()
        for row in live:
            if row.request.prompt_logprobs:
                row.ticket.emit(Prompt(row.number, tuple(read.logprobs)))
            if not row.room:
                row.ticket.emit(End(row.number, "context"))
        rows = [row for row in live if row.room]
        lookup = None if self._exact is None else PromptLookup(read.prompt)
        for row in rows:
            row.lookup = lookup.copy() if lookup and row.request.speculate else None
        forks = self._rows.fork(read.name, len(rows) - 1) if len(rows) > 1 else ()
        self._reading.remove(read)
        if not rows:
            self._rows.free(read.name)
            return []
        for row, name in zip(rows, (read.name, *forks), strict=True):
            row.name = name
        self._running += rows
        return rows

    def _draft(self) -> None:
        """Draft the ids that follow each running row, unless the step also reads prompts."""
        rows = len(self._running)
        for row in self._running:
            most = 0 if self._reading else min(MAX_TOKENS // rows, row.room - row.written) - 1
            row.draft = row.lookup.draft(most, rows=rows) if row.lookup else ()

    def _verify(self, rows: Sequence[_Row], logits: Sequence[Array]) -> None:
        """Choose an id for every row, and the next one while a row's ids are those of its draft.

        logits: of each row, behind its last id and behind those of the draft.
        """
        for place in count():
            self._choose(rows, [each[place : place + 1] for each in logits])
            going = []
            for row, each in zip(rows, logits, strict=True):
                if place < len(row.draft) and row in self._running and not row.ticket.ended:
                    if row.draft[place] == row.past[-1]:
                        going.append((row, each))
                    elif self._exact is not None:
                        self._exact.drop(row.name, len(row.draft) - place)
            if not going:
                return
            rows, logits = [row for row, _ in going], [each for _, each in going]

    def _choose(self, rows: Sequence[_Row], logits: Sequence[Array]) -> None:
        """Choose an id for every row; rows with equal settings are computed together."""
        equal: dict[tuple[Sampling, tuple[int, ...]], list[int]] = {}
        for place, row in enumerate(rows):
            limits = row.request.limits
            banned = limits.end_ids if row.written < limits.min_tokens else ()
            equal.setdefault((row.request.sampling, banned), []).append(place)
        chosen = [0] * len(rows)
        for (sampling, banned), places in equal.items():
            scores = array_api_compat.array_namespace(*logits).concat([logits[place] for place in places])
            scores = rules.banned(scores, banned) if banned else scores
            scores = sampling.apply(scores, [rows[place].past for place in places])
            draws = [
                uniform(row.request.seed, row.request.sample, row.written) for row in (rows[place] for place in places)
            ]
            for place, id in zip(places, choose(scores, draws).tolist(), strict=True):
                chosen[place] = id
        for row, id, scores in zip(rows, chosen, logits, strict=True):
            if not row.ticket.ended:
                self._append(row, id, scores)

    def _append(self, row: _Row, id: int, logits: Array) -> None:
        request = row.request
        try:
            checked([id], self._engine.vocab_size)
            row.past.append(id)
            row.written += 1
            if row.lookup:
                row.lookup.append(id)
            reason = request.limits.reason(row.written, id, row.room, request.stop and partial(request.stop, id))
        except HanmoError as error:
            self._fail(row, error)
            return
        self._tokens += 1
        top = request.top_logprobs
        found = None if top is None else log_probs(logits, [id], top)[0]
        row.ticket.emit(Token(row.number, id, found))
        if reason is not None:
            self._rows.free(row.name)
            self._running.remove(row)
            row.ticket.emit(End(row.number, reason))

    def _score_prompt(self, read: _Reading, ids: Sequence[int], logits: Array) -> None:
        following = read.prompt[read.done - len(ids) + 1 : read.done + 1]
        top = max(row.request.top_logprobs or 0 for row in read.rows)
        read.logprobs += log_probs(logits[: len(following)], following, top)

    def _fail(self, row: _Row, error: BaseException) -> None:
        if not row.ticket.ended:
            row.ticket.ended = True
            row.ticket.emit(Failed(error))

    def _drop_ended(self) -> None:
        """Free the rows of tickets that have been cancelled or have failed."""
        for row in [row for row in self._running if row.ticket.ended]:
            self._running.remove(row)
            self._rows.free(row.name)
        for each in [each for each in self._reading if not each.live()]:
            self._reading.remove(each)
            self._rows.free(each.name)
