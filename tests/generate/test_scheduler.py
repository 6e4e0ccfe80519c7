import threading
import time
from queue import SimpleQueue

import numpy as np
import pytest
from toy_engine import ToyDynamicEngine, ToyEngine, ToyJoiningEngine

from hanmo.errors import CheckpointError, ConfigError, PromptError, QueueFull, SchedulerClosed
from hanmo.generate import GREEDY, End, Limits, Sampling, Token, sample
from hanmo.generate.continuous import ContinuousBatch
from hanmo.generate.scheduler import Failed, Prompt, RowRequest, Scheduler

ENGINES = [ToyEngine, ToyJoiningEngine, ToyDynamicEngine]
TIMEOUT = 20  # seconds, for what takes milliseconds
SETTINGS = (
    {"sampling": GREEDY, "limits": Limits(max_tokens=9)},
    {"sampling": Sampling(top_k=8, top_p=0.95, temperature=1.2), "limits": Limits(max_tokens=5, end_ids=(3,))},
    {"sampling": Sampling(no_repeat_ngram=2), "limits": Limits(max_tokens=12, min_tokens=6, end_ids=(1, 8))},
    {"sampling": Sampling(repetition_penalty=1.3), "limits": Limits()},
)


@pytest.fixture
def scheduler_of():
    made = []

    def make(engine, **options):
        made.append(Scheduler(engine, **options))
        return made[-1]

    yield make
    for each in made:
        each.close(drain=False)


class Inbox:
    """Collects the events of one ticket."""

    def __init__(self):
        self.queue = SimpleQueue()

    def __call__(self, event):
        self.queue.put(event)

    def until_end(self, rows=1):
        events, ends = [], 0
        while ends < rows:
            events.append(self.queue.get(timeout=TIMEOUT))
            if isinstance(events[-1], Failed):
                return events
            ends += isinstance(events[-1], End)
        return events


def requests_of(engine, count=12, prompt=5, seed=0):
    random = np.random.default_rng(seed)
    for number in range(count):
        ids = random.integers(0, engine.vocab_size, random.integers(1, prompt + 1)).tolist()
        yield RowRequest(prompt=ids, seed=number, sample=number % 3, **SETTINGS[number % len(SETTINGS)])


def alone(engine, request, row=0):
    """Give the events that `sample` gives for one row."""
    given = {"seed": request.seed, "first": request.sample, "sampling": request.sampling, "limits": request.limits}
    return [event._replace(row=row) for event in sample(engine, [request.prompt], **given)]


def wait_for(condition):
    until = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


class Gate(ToyEngine):
    """An engine whose steps wait; `entered` is set in each."""

    def __init__(self, **options):
        super().__init__(**options)
        self.entered, self.open = threading.Event(), threading.Event()

    def random_scores(self, ids):
        self.entered.set()
        assert self.open.wait(TIMEOUT)
        return super().random_scores(ids)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("options", [{"max_rows": 1}, {"max_rows": 3, "prompt_ids": 2}, {}])
def test_rows_with_settings_of_their_own_equal_sample_alone(scheduler_of, kind, options):
    scheduler = scheduler_of(kind(max_positions=24), **options)
    requests = list(requests_of(ToyEngine()))
    inboxes = [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        scheduler.submit([request], inbox)
    for request, inbox in zip(requests, inboxes, strict=True):
        assert inbox.until_end() == alone(ToyEngine(max_positions=24), request)
    wait_for(lambda: scheduler.stats.running == scheduler.stats.cached_ids == 0)


@pytest.mark.parametrize("kind", [ToyEngine, ToyJoiningEngine])
def test_rows_of_one_prompt_share_what_was_read_and_end_apart(scheduler_of, kind):
    engine, inbox = kind(), Inbox()
    requests = [RowRequest(prompt=[1, 2, 3], seed=7, sample=n, limits=Limits(max_tokens=n + 1)) for n in range(5)]
    scheduler_of(engine).submit(requests, inbox)
    events = inbox.until_end(5)
    assert engine.prefilled == [[[1, 2, 3]]] and engine.steps == [4, 3, 2, 1]
    for row, request in enumerate(requests):
        assert [event for event in events if event.row == row] == alone(ToyEngine(), request, row)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_ticket_of_more_rows_than_run_at_once_is_finished_in_parts(scheduler_of, kind):
    requests = [RowRequest(prompt=[4], seed=1, sample=n, limits=Limits(max_tokens=3)) for n in range(7)]
    inbox, engine = Inbox(), kind()
    scheduler_of(engine, max_rows=3).submit(requests, inbox)
    events = inbox.until_end(7)
    assert max(engine.steps) == 3
    for row, request in enumerate(requests):
        assert [event for event in events if event.row == row] == alone(ToyEngine(), request, row)


def test_a_step_reads_at_most_so_many_ids_of_prompts_beside_the_rows_that_run(scheduler_of):
    engine, read = ToyDynamicEngine(), []
    step, inbox = engine.dynamic_rows, Inbox()

    def counted():
        rows = step()
        run = rows.step
        rows.step = lambda work: read.append([len(piece.ids) for piece in work]) or run(work)
        return rows

    engine.dynamic_rows = counted
    requests = [RowRequest(prompt=[n] * length, seed=n, limits=Limits(max_tokens=3)) for n, length in enumerate((3, 9))]
    scheduler_of(engine, prompt_ids=4).submit(requests, inbox)
    inbox.until_end(2)
    assert read == [[3], [1, 4], [1, 4], [1], [1], [1]]


@pytest.mark.parametrize("length", [1, 4, 9, 30])
def test_a_ninth_row_begins_within_the_parts_of_its_prompt_and_the_step_that_runs(scheduler_of, length):
    scheduler = scheduler_of(ToyDynamicEngine(max_positions=100_000), prompt_ids=4)
    first = SimpleQueue()
    for seed in range(8):
        scheduler.submit([RowRequest(prompt=[1], seed=seed)], lambda event: None)
    wait_for(lambda: scheduler.stats.running == 8 and scheduler.stats.prompt_ids == 8)
    with scheduler._changed:  # so that no step begins in between
        before = scheduler.stats.steps
        request = RowRequest(prompt=[2] * length, seed=9, limits=Limits(max_tokens=1))
        scheduler.submit([request], lambda event: first.put((event, scheduler.stats)))
    event, stats = first.get(timeout=TIMEOUT)
    assert isinstance(event, Token) and stats.running >= 8
    assert stats.steps - before <= -(-length // 4) + 1


@pytest.mark.parametrize(("kind", "together"), [*zip(ENGINES, (3, 2, 3), strict=True)])
def test_rows_wait_until_the_caches_have_room_for_their_longest_text(scheduler_of, kind, together):
    """Where rows share a cache, each takes as much as the longest."""
    scheduler, inboxes, running = scheduler_of(kind(), cache_ids=20), [], []
    requests = [
        RowRequest(prompt=[n, 3], seed=n, limits=Limits(max_tokens=8 if n == 0 else 3)) for n in range(5)
    ]  # 10 ids, and 5
    with scheduler._changed:
        for request in requests:
            inboxes.append(Inbox())
            put = inboxes[-1].queue.put
            scheduler.submit([request], lambda event, put=put: running.append(scheduler.stats.running) or put(event))
    for request, inbox in zip(requests, inboxes, strict=True):
        assert inbox.until_end() == alone(ToyEngine(), request)
    assert max(running) == together


@pytest.mark.parametrize(("kind", "running"), [*zip(ENGINES, (2, 3, 3), strict=True)])
def test_as_many_samples_begin_as_there_is_room_for_unless_they_must_be_computed_together(kind, running):
    batch = ContinuousBatch(kind(), max_rows=3)
    batch.submit([RowRequest(prompt=[1], seed=0)] * 2, lambda event: None)
    batch.submit([RowRequest(prompt=[2], seed=0, sample=n) for n in range(3)], lambda event: None)
    batch.admit()
    batch.step()
    assert (batch.stats.running, batch.stats.waiting) == (running, 5 - running)


def test_samples_that_wait_for_rows_read_their_prompt_a_few_times_alone():
    batch = ContinuousBatch(ToyDynamicEngine(), max_rows=8)
    for number in range(8):  # of which one ends in each step
        batch.submit([RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=number + 1))], lambda event: None)
    batch.admit()
    samples = [RowRequest(prompt=[2] * 5, seed=0, sample=n, limits=Limits(max_tokens=20)) for n in range(8)]
    batch.submit(samples, lambda event: None)
    while batch.busy:
        batch.admit()
        batch.step()
    assert batch.stats.prompt_ids <= 8 + 4 * 5  # by 4, 2, 1 and 1 samples


def test_samples_that_do_not_fit_the_caches_together_are_generated_in_parts(scheduler_of):
    scheduler, inbox = scheduler_of(ToyDynamicEngine(), cache_ids=20), Inbox()
    requests = [RowRequest(prompt=[4], seed=1, sample=n, limits=Limits(max_tokens=5)) for n in range(7)]
    scheduler.submit(requests, inbox)
    events = inbox.until_end(7)
    for row, request in enumerate(requests):
        assert [event for event in events if event.row == row] == alone(ToyEngine(), request, row)
    assert max(scheduler._batch._engine.steps) == 3
    with pytest.raises(
        ConfigError, match="1 x 21 tokens, prompt and text, do not fit the caches, which have room for 20"
    ):
        scheduler.submit([RowRequest(prompt=[4], seed=1, limits=Limits(max_tokens=20))], inbox)


def test_rows_that_join_one_cache_run_together_and_short_prompts_are_read_together(scheduler_of):
    engine, inboxes = ToyJoiningEngine(), [Inbox(), Inbox(), Inbox()]
    scheduler = scheduler_of(engine)
    requests = [RowRequest(prompt=[n] * (n + 1), seed=n, limits=Limits(max_tokens=5 + n)) for n in range(3)]
    with scheduler._changed:  # so that all of them wait when the first step begins
        for request, inbox in zip(requests, inboxes, strict=True):
            scheduler.submit([request], inbox)
    for request, inbox in zip(requests, inboxes, strict=True):
        assert inbox.until_end() == alone(ToyEngine(), request)
    assert engine.prefilled == [[[0], [1, 1], [2, 2, 2]]] and engine.steps == [3, 3, 3, 3, 2, 1]


def test_a_stop_is_asked_after_every_id_and_its_reason_is_the_rows(scheduler_of):
    asked, inbox = [], Inbox()

    def stop(id):
        asked.append(id)
        return "enough" if len(asked) == 3 else None

    scheduler_of(ToyEngine()).submit([RowRequest(prompt=[1], seed=0, stop=stop)], inbox)
    events = inbox.until_end()
    assert [event.id for event in events[:-1]] == asked and events[-1] == End(0, "enough")


@pytest.mark.parametrize("prompt_ids", [1, 3, 8])
@pytest.mark.parametrize("kind", ENGINES)
def test_log_probabilities_are_those_of_the_model_for_text_and_prompt(scheduler_of, kind, prompt_ids):
    engine, inbox, prompt = kind(), Inbox(), [5, 2, 9, 9]
    sampling, limits = Sampling(temperature=0.1, banned=(0,)), Limits(max_tokens=3)
    request = RowRequest(prompt=prompt, seed=3, sampling=sampling, limits=limits, top_logprobs=2, prompt_logprobs=True)
    scheduler_of(engine, prompt_ids=prompt_ids).submit([request], inbox)
    first, *tokens, end = inbox.until_end()
    assert isinstance(first, Prompt) and first.logprobs[0] is None and end == End(0, "length")
    assert [token.id for token in tokens] == [event.id for event in alone(ToyEngine(), request)[:-1]]
    ids = prompt + [token.id for token in tokens]
    for place, found in enumerate([*first.logprobs[1:], *(token.logprobs for token in tokens)], 1):
        scores = engine.random_scores(ids[:place]).astype(np.float32).astype(np.float64)
        expected = scores - np.log(np.exp(scores).sum())
        assert found.id == pytest.approx(expected[ids[place]])
        assert [id for id, _ in found.top] == np.argsort(-expected)[:2].tolist()
        assert [value for _, value in found.top] == pytest.approx(sorted(expected)[:-3:-1])


@pytest.mark.parametrize("kind", [ToyEngine, ToyJoiningEngine])
def test_a_prompt_is_scored_in_few_steps_so_that_other_rows_go_on(kind):
    engine, tokens = kind(max_positions=200), []
    batch = ContinuousBatch(engine)
    batch.submit([RowRequest(prompt=[1], seed=0)], tokens.append)
    batch.admit()
    batch.step()
    for id in (5, 6):
        batch.submit([RowRequest(prompt=[id] * 65, seed=0, prompt_logprobs=True)], lambda event: None)
    batch.admit()
    batch.step()
    assert len(tokens) == 2 and batch.stats.prompt_ids == 1 + 64
    assert engine.steps == [1, 1]  # of the row that runs, and of the prompt behind its first id


def test_a_prompt_that_fills_the_model_can_still_be_scored(scheduler_of):
    inbox = Inbox()
    request = RowRequest(prompt=[1, 2, 3], seed=0, prompt_logprobs=True)
    scheduler = scheduler_of(ToyEngine(max_positions=3))
    scheduler.submit([request], inbox)
    prompt, end = inbox.until_end()
    assert len(prompt.logprobs) == 3 and end == End(0, "context")
    scheduler.submit([RowRequest(prompt=[1, 2, 3], seed=0)], inbox)
    assert inbox.until_end() == [End(0, "context")]


def test_a_cancelled_ticket_frees_its_rows_within_a_step_and_others_go_on(scheduler_of):
    engine, gone, kept = Gate(), Inbox(), Inbox()
    scheduler = scheduler_of(engine)
    request = RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=40))
    ticket = scheduler.submit([request, request], gone)
    assert engine.entered.wait(TIMEOUT)
    scheduler.submit([request], kept)
    ticket.cancel()
    engine.open.set()
    assert kept.until_end() == alone(ToyEngine(), request)
    assert gone.queue.empty()
    assert engine.steps.count(1) == 39 and set(engine.steps) == {1}
    wait_for(lambda: scheduler.stats.running == 0)


def test_a_full_queue_refuses_and_a_row_that_waits_can_be_cancelled(scheduler_of):
    engine = Gate()
    scheduler = scheduler_of(engine, max_rows=1, max_queue=2)
    request = RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=2))
    inbox = Inbox()
    scheduler.submit([request], inbox)
    assert engine.entered.wait(TIMEOUT)
    waiting = [scheduler.submit([request], inbox) for _ in range(2)]
    assert scheduler.stats.waiting == 2 and scheduler.stats.running == 1
    with pytest.raises(QueueFull, match="2 rows are waiting and 1 more do not fit the queue of 2; try again later"):
        scheduler.submit([request], inbox)
    with pytest.raises(ConfigError, match="3 rows at once do not fit the queue of 2"):
        scheduler.submit([request] * 3, inbox)
    waiting[0].cancel()
    scheduler.submit([request], inbox)
    engine.open.set()
    assert [type(event) for event in inbox.until_end(3)] == [Token, Token, End] * 3


def test_rows_that_are_cancelled_leave_the_queue_though_the_first_one_waits():
    batch = ContinuousBatch(ToyEngine(), max_rows=1)
    tickets = [batch.submit([RowRequest(prompt=[1], seed=0)], lambda event: None) for _ in range(5)]
    batch.admit()
    for ticket in tickets[2:]:
        ticket.cancel()
    batch.admit()
    assert len(batch._waiting) == 1


def test_an_engine_that_fails_ends_its_rows_and_the_scheduler_goes_on(scheduler_of):
    def scores(ids):
        if 11 in ids:
            raise RuntimeError("out of memory")
        return ToyEngine().random_scores(ids)

    scheduler, inbox = scheduler_of(ToyEngine(scores=scores)), Inbox()
    bad = RowRequest(prompt=[11], seed=0)
    good = RowRequest(prompt=[1], seed=0, sampling=Sampling(banned=(11,)), limits=Limits(max_tokens=4))
    scheduler.submit([bad], inbox)
    (failed,) = inbox.until_end()
    assert str(failed.error) == "out of memory"
    scheduler.submit([good], inbox)
    assert inbox.until_end() == alone(ToyEngine(), good)


def test_samples_that_cannot_be_forked_fail_with_all_that_run_and_no_row_is_kept(scheduler_of):
    engine, inboxes = ToyDynamicEngine(), [Inbox(), Inbox(), Inbox()]
    rows = engine.dynamic_rows()
    engine.dynamic_rows = lambda: rows

    def fork(row, count):
        raise MemoryError("no room for copies")

    rows.fork = fork
    scheduler, request = scheduler_of(engine), RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=4))
    with scheduler._changed:  # so that all of them begin with the same step
        for count, inbox in zip((1, 2, 1), inboxes, strict=True):
            scheduler.submit([request] * count, inbox)
    for inbox in inboxes:
        assert str(inbox.until_end()[-1].error) == "no room for copies"
    wait_for(lambda: not rows.past and scheduler.stats.running == 0)
    scheduler.submit([request], inboxes[0])
    assert inboxes[0].until_end() == alone(ToyEngine(), request)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_cannot_free_rows_ends_the_thread_and_every_row_is_told(scheduler_of):
    engine, running, waiting = Gate(), Inbox(), Inbox()
    scheduler, request = scheduler_of(engine, max_rows=1), RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=1))

    def free(row):
        raise RuntimeError("the device is gone")

    scheduler._batch._rows.free = free
    scheduler.submit([request], running)
    assert engine.entered.wait(TIMEOUT) and scheduler.alive
    scheduler.submit([request], waiting)
    engine.open.set()
    assert str(running.until_end()[-1].error) == "the device is gone"
    assert isinstance(waiting.until_end()[-1].error, SchedulerClosed)
    wait_for(lambda: not scheduler.alive)
    with pytest.raises(SchedulerClosed):
        scheduler.submit([request], waiting)


def test_a_receiver_that_raises_is_told_so_and_its_rows_alone_end(scheduler_of):
    engine, inbox, seen = ToyDynamicEngine(), Inbox(), []
    scheduler = scheduler_of(engine)

    def broken(event):
        seen.append(event)
        raise ValueError("half a character")

    request = RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=30))
    with scheduler._changed:
        scheduler.submit([request], broken)
        scheduler.submit([request], inbox)
    assert inbox.until_end() == alone(ToyEngine(), request)
    assert [type(event) for event in seen] == [Token, Failed] and str(seen[1].error) == "half a character"
    assert engine.steps == [2] + [1] * 29


def test_weights_of_nan_fail_their_ticket_alone(scheduler_of):
    def scores(ids):
        return np.full(12, np.nan) if ids[0] == 11 else ToyEngine().random_scores(ids)

    scheduler, broken, whole = scheduler_of(ToyEngine(scores=scores)), Inbox(), Inbox()
    good = RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=6))
    scheduler.submit([good], whole)
    scheduler.submit([RowRequest(prompt=[11], seed=0), RowRequest(prompt=[11], seed=1)], broken)
    (failed,) = broken.until_end()
    assert isinstance(failed.error, CheckpointError)
    assert whole.until_end() == alone(ToyEngine(), good)


def test_closing_with_drain_finishes_all_rows_and_refuses_new_ones(scheduler_of):
    scheduler, inbox = scheduler_of(ToyEngine(), max_rows=2), Inbox()
    request = RowRequest(prompt=[1], seed=0, limits=Limits(max_tokens=5))
    for _ in range(6):
        scheduler.submit([request], inbox)
    scheduler.close(drain=True)
    assert sum(isinstance(event, End) for event in inbox.until_end(6)) == 6
    with pytest.raises(SchedulerClosed, match="the scheduler is closed and takes no more rows"):
        scheduler.submit([request], inbox)
    assert scheduler.stats.waiting == scheduler.stats.running == 0


def test_closing_without_drain_fails_the_rows_that_run_and_wait(scheduler_of):
    engine, running, waiting = Gate(), Inbox(), Inbox()
    scheduler = scheduler_of(engine, max_rows=1)
    scheduler.submit([RowRequest(prompt=[1], seed=0)], running)
    assert engine.entered.wait(TIMEOUT)
    scheduler.submit([RowRequest(prompt=[1], seed=0)], waiting)
    closing = threading.Thread(target=scheduler.close, kwargs={"drain": False})
    closing.start()
    wait_for(lambda: scheduler._aborted)
    engine.open.set()
    closing.join(TIMEOUT)
    assert not closing.is_alive()
    for inbox in (running, waiting):
        assert isinstance(inbox.until_end()[-1].error, SchedulerClosed)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompt": []}, PromptError, "the prompt is empty"),
        ({"prompt": [12]}, PromptError, "id 12 at position 0"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"sample": -1}, ConfigError, "sample is -1"),
        (
            {"prompt_logprobs": True, "history": False},
            ConfigError,
            "prompt_logprobs are those of a text that is continued",
        ),
        ({"top_logprobs": 13}, ConfigError, "top_logprobs is 13; expected a whole number from 0 to 12"),
        ({"sampling": Sampling(banned=(12,))}, ConfigError, "banned holds id 12; the vocabulary has ids 0 to 11"),
        ({"limits": Limits(end_ids=(99,))}, ConfigError, "end_ids holds id 99"),
    ],
)
def test_a_request_that_cannot_be_generated_is_refused_at_once(scheduler_of, change, error, message):
    with pytest.raises(error, match=message):
        scheduler_of(ToyEngine()).submit([RowRequest(**{"prompt": [1], "seed": 0, **change})], Inbox())
