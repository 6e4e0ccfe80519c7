"""What a scheduler takes and gives: the request of a row, the events of rows, the ticket that cancels them, numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from hanmo.generate.loop import PLAIN, UNLIMITED, End, Limits, LogProbs, Token
from hanmo.generate.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class RowRequest:
    """One row to generate, as by `sample(engine, [prompt], seed=seed, first=sample, …)`.

    history, stop: as for `sample`; stop is called with the id alone.
    speculate: draft ids by prompt lookup where this changes no text; see speculation.py.
    top_logprobs: report the log-probability of each id, and so many of the likeliest; None does not.
    prompt_logprobs: report them for the ids of the prompt too, with as many of the likeliest; needs history.
    """

    prompt: Sequence[int]
    seed: int
    sample: int = 0
    sampling: Sampling = PLAIN
    limits: Limits = UNLIMITED
    history: bool = True
    stop: Callable[[int], str | None] | None = None
    speculate: bool = True
    top_logprobs: int | None = None
    prompt_logprobs: bool = False


class Prompt(NamedTuple):
    """A row's prompt has been read; logprobs: of its ids, None for the first."""

    row: int
    logprobs: tuple[LogProbs | None, ...]


class Failed(NamedTuple):
    """All rows of a ticket have ended with an error."""

    error: BaseException


Event: TypeAlias = Prompt | Token | End | Failed


@dataclass(frozen=True)
class Stats:
    """Numbers of rows that wait and that run, of the ids in their caches, and counts since the start.

    tokens: generated ids.   prompt_ids: ids of prompts that were read.   steps: of the engine.
    """

    waiting: int
    running: int
    cached_ids: int
    tokens: int
    prompt_ids: int
    steps: int


class Ticket:
    """Rows that were submitted together."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.emit = emit
        self.ended = False

    def cancel(self) -> None:
        """End the rows without further events; they are freed within one step. From any thread, at any time."""
        self.ended = True
