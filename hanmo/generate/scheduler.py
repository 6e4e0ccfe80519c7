"""A thread that runs one engine for rows submitted from any thread: a bounded queue before a `ContinuousBatch`."""

from collections.abc import Callable, Sequence
from threading import Condition, Thread

from hanmo.errors import ConfigError, QueueFull, SchedulerClosed
from hanmo.generate.continuous import ContinuousBatch
from hanmo.generate.loop import Engine
from hanmo.generate.rules import check_count
from hanmo.generate.ticket import Event, Failed, Prompt, RowRequest, Stats, Ticket

__all__ = ["Event", "Failed", "Prompt", "RowRequest", "Scheduler", "Stats", "Ticket"]


class Scheduler:
    """Generates rows of one engine, which nothing else may use meanwhile if it is a `QueueingEngine`.

    max_rows: rows that run at once.   max_queue: rows that wait.   prompt_ids: most ids of prompts read in a step.
    cache_ids: ids for which the caches of rows that run have room, None without limit; each row has room for its prompt
    and its longest text from the start, and waits until there is as much.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_rows: int = 32,
        max_queue: int = 256,
        cache_ids: int | None = None,
        prompt_ids: int = 512,
    ) -> None:
        check_count("max_queue", max_queue)
        self._batch = ContinuousBatch(engine, max_rows=max_rows, cache_ids=cache_ids, prompt_ids=prompt_ids)
        self.check_fits = self._batch.check_fits
        self.cache_ids = cache_ids
        self._max_queue = max_queue
        self._changed = Condition()
        self._closed = self._aborted = False
        self._thread = Thread(target=self._run, name="hanmo-scheduler", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> Stats:
        """The numbers at this moment."""
        with self._changed:
            return self._batch.stats

    def check_queue(self, rows: int) -> None:
        """Raise what `submit` raises for so many rows: QueueFull, SchedulerClosed, or ConfigError if they never fit."""
        if rows > self._max_queue:
            raise ConfigError(f"{rows} rows at once do not fit the queue of {self._max_queue}; ask for fewer")
        if self._closed or not self.alive:
            raise SchedulerClosed("the scheduler is closed and takes no more rows")
        waiting = self.stats.waiting
        if waiting + rows > self._max_queue:
            raise QueueFull(
                f"{waiting} rows are waiting and {rows} more do not fit the queue of {self._max_queue}; try again later"
            )

    def submit(self, rows: Sequence[RowRequest], emit: Callable[[Event], None]) -> Ticket:
        """Let rows wait for the next step; row i of the events is rows[i].

        Equal prompts side by side are read once for all rows that begin together.
        emit: called from the scheduler's thread with every event; it must not block. If it raises, these rows end, and
        it is called with that error as `Failed`.
        Raises, at once, QueueFull, SchedulerClosed, PromptError for a prompt that cannot be continued, and ConfigError
        for a setting or for more rows than the queue holds.
        """
        with self._changed:
            self.check_queue(len(rows))

            def report(event: Event) -> None:
                try:
                    emit(event)
                except BaseException as error:  # of the receiver; the other rows go on
                    ticket.cancel()
                    if not isinstance(event, Failed):
                        report(Failed(error))

            ticket = self._batch.submit(rows, report)
            self._changed.notify()
        return ticket

    @property
    def alive(self) -> bool:
        """Whether the thread runs, without which no row is generated."""
        return self._thread.is_alive()

    def close(self, *, drain: bool) -> None:
        """Take no more rows and wait for the thread; may be called again, without draining, from another thread.

        drain: whether rows that wait and run are finished; else their tickets fail with SchedulerClosed.
        """
        with self._changed:
            self._closed, self._aborted = True, self._aborted or not drain
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                try:
                    with self._changed:
                        self._batch.admit()
                    self._batch.step()
                except BaseException as error:  # of the engine: its rows fail, and the thread goes on
                    self._batch.fail(error)
        finally:  # also after an error of `fail` itself
            with self._changed:
                self._closed = True
                self._batch.fail(SchedulerClosed("the scheduler was closed before the rows ended"), waiting=True)

    def _wait(self) -> bool:
        """Wait for rows; return whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._batch.busy or self._closed)
            return self._batch.busy and not self._aborted
