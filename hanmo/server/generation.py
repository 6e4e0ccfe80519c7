"""The rows of one request, between the scheduler's thread and the event loop: from ids to pieces of text.

scheduler's thread: Token, End ──► Row: decode, cut ──► Piece ──► joined by row ──► event loop: chunks
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock

from hanmo.errors import HanmoError
from hanmo.generate.loop import End, LogProbs, Token
from hanmo.generate.scheduler import Event, Failed, Prompt, Ticket
from hanmo.generate.text import Stream
from hanmo.server.errors import RequestError

_LOG = logging.getLogger(__name__)
_HALF = "\ufffd"  # what decoders make of a character whose last bytes are missing


@dataclass(frozen=True)
class Scored:
    """A token as it is reported.   start: the characters before it.   logprobs: None for the first of a prompt."""

    id: int
    text: str
    start: int
    logprobs: LogProbs | None


@dataclass
class Piece:
    """A part of a row's text.   reason: of the row's end, None before."""

    row: int
    text: str = ""
    tokens: list[Scored] = field(default_factory=list)
    reason: str | None = None

    def extend(self, other: "Piece") -> None:
        """Append the next part of the same row."""
        self.text += other.text
        self.tokens += other.tokens
        self.reason = other.reason


@dataclass(frozen=True)
class Echo:
    """A prompt that is returned before its text.

    spans: (start, stop) in the text of each id, if tokens are reported.
    """

    text: str
    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]

    def tokens(self, logprobs: Sequence[LogProbs | None]) -> list[Scored]:
        """Return the tokens; a character that several share is the first one's.   logprobs: of the prompt's ids."""
        found, shown = [], 0
        for id, (start, stop), each in zip(self.ids, self.spans, logprobs[-len(self.ids) :], strict=True):
            start = max(start, shown)
            shown = max(stop, shown)
            found.append(Scored(id, self.text[start:shown], start, each))
        return found


class Row:
    """One text while it is generated.

    echo: None if the prompt is not returned.   scored: whether tokens are reported.   discard: whether nothing follows
    the prompt.
    """

    def __init__(
        self, number: int, stream: Stream, *, echo: Echo | None = None, scored: bool = False, discard: bool = False
    ) -> None:
        self.stream, self.discard = stream, discard
        self._number, self._echo, self._scored = number, echo, scored
        self._offset = 0 if echo is None else len(echo.text)
        self._begun = echo is None
        self._text = ""
        self._logprobs: list[LogProbs | None] = []
        self._reported = 0

    def stop(self, id: int) -> str | None:
        """Decode an id; return the reason if the text ends with it. For `RowRequest.stop`."""
        return "length" if self.discard else self.stream.push(id)

    def receive(self, event: Prompt | Token | End) -> Piece | None:
        """Take an event and return what it adds, None for nothing."""
        piece = Piece(self._number)
        if not self._begun:
            assert self._echo is not None
            self._begun, piece.text = True, self._echo.text
            if isinstance(event, Prompt):
                piece.tokens = self._echo.tokens(event.logprobs)
        if isinstance(event, Prompt):
            return piece
        if self.discard:
            piece.reason = event.reason if isinstance(event, End) else None
            return piece if piece.text or piece.reason else None
        added = self.stream.receive(event)
        if isinstance(event, Token):
            self._logprobs.append(event.logprobs)
        else:
            added, piece.reason = added.removesuffix(_HALF), self.stream.reason
        self._text += added
        piece.text += added
        if self._scored:
            piece.tokens += self._shown_tokens(ended=piece.reason is not None)
        return piece if piece.text or piece.tokens or piece.reason else None

    def mean_logprob(self) -> float:
        """Return the mean log-probability of the ids, which ranks the candidates of best_of."""
        found = [each.id for each in self._logprobs if each is not None]
        return sum(found) / len(found) if found else 0.0

    def _shown_tokens(self, *, ended: bool) -> list[Scored]:
        """Return the tokens that were not reported yet and whose text is complete, or cut by the end."""
        starts = [*self.stream.starts[self._reported :], self.stream.decoded]
        found = []
        for start, stop in pairwise(starts):
            if stop > len(self._text) and not (ended and start < len(self._text)):
                break
            place = self._reported
            text = self._text[start:stop]
            found.append(Scored(self.stream.ids[place], text, self._offset + start, self._logprobs[place]))
            self._reported += 1
        return found


class Generation:
    """The rows of one request; `emit` is called in the scheduler's thread, everything else in the loop's.

    clock: called with the event's row at each Token, in the scheduler's thread.
    What is not taken is joined, so that a slow reader holds each text once at most.
    """

    def __init__(
        self, rows: Sequence[Row], loop: asyncio.AbstractEventLoop, *, clock: Callable[[int], None] = lambda row: None
    ) -> None:
        self.rows, self.ticket = rows, Ticket(lambda event: None)
        self._clock = clock
        self._loop, self._ready = loop, asyncio.Event()
        self._changing = Lock()
        self._pieces: dict[int, Piece] = {}  # what is not taken, by row
        self._error: BaseException | None = None

    def emit(self, event: Event) -> None:
        """Take an event of the scheduler. Raises RuntimeError if the loop is closed."""
        if isinstance(event, Failed):
            self._error = event.error
        else:
            if isinstance(event, Token):
                self._clock(event.row)
            piece = self.rows[event.row].receive(event)
            if piece is None:
                return
            with self._changing:
                if event.row in self._pieces:
                    self._pieces[event.row].extend(piece)
                else:
                    self._pieces[event.row] = piece
        self._loop.call_soon_threadsafe(self._ready.set)

    async def pieces(self, *, pause: float | None = None) -> AsyncIterator[list[Piece]]:
        """Yield what is new, a piece a row, until all rows have ended; an empty list after each `pause` in seconds.

        Raises the HanmoError with which the rows failed; other errors are logged, and a RequestError is raised.
        """
        opened = len(self.rows)
        while opened:
            if not await self._wait(pause):
                yield []
                continue
            self._ready.clear()
            if isinstance(self._error, HanmoError):
                raise self._error
            if self._error is not None:
                _LOG.error("the rows of a request failed", exc_info=self._error)
                raise RequestError("the model failed; the server's log says why", status=500)
            with self._changing:
                found, self._pieces = self._pieces, {}
            opened -= sum(piece.reason is not None for piece in found.values())
            if found:
                yield list(found.values())

    async def _wait(self, pause: float | None) -> bool:
        """Wait for news; returns whether there are any. `asyncio.wait_for` forgets to be cancelled if there are."""
        waiting = asyncio.ensure_future(self._ready.wait())
        try:
            return bool((await asyncio.wait({waiting}, timeout=pause))[0])
        finally:
            waiting.cancel()

    async def whole(self) -> list[Piece]:
        """Wait for the end, and return the whole of each row."""
        found = [Piece(number) for number in range(len(self.rows))]
        async for pieces in self.pieces():
            for piece in pieces:
                found[piece.row].extend(piece)
        return found

    def close(self) -> None:
        """Free the rows that have not ended; they are freed within one step."""
        self.ticket.cancel()
