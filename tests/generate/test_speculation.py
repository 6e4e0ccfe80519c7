"""Drafts by prompt lookup: no text changes, repetition takes fewer steps, and plain text hardly any more work."""

from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text import CONFIG, Bytes
from toy_engine import ToyDynamicEngine, ToyEngine

from hanmo.errors import ConfigError
from hanmo.generate import GREEDY, GenerationConfig, Limits, Sampling, StopRules, sample, stream, write
from hanmo.generate.scheduler import RowRequest, Scheduler
from hanmo.generate.speculation import MAX_TOKENS, PromptLookup, SpeculativeEngine, speculative


class Recorded(ToyDynamicEngine):
    """A toy engine whose scores follow the last two ids often, so that drafts are kept and dropped.

    scored: the number of ids that were computed, drafts included.
    """

    def __init__(self, *, sharpness=6.0, **options):
        super().__init__(**options)
        self.sharpness, self.scored = sharpness, 0

    def random_scores(self, ids):
        self.scored += 1
        likely = (5 * ids[-1] + sum(ids[-2:-1])) % self.vocab_size
        return super().random_scores(ids) + self.sharpness * (np.arange(self.vocab_size) == likely)


SAMPLING = [
    GREEDY,
    Sampling(),
    Sampling(top_k=3, repetition_penalty=1.2),
    Sampling(top_p=0.9, temperature=0.7, no_repeat_ngram=4),
]
LIMITS = [Limits(), Limits(max_tokens=40, min_tokens=30, end_ids=(3, 7)), Limits(max_tokens=2)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 11), min_size=1, max_size=20),
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.sampled_from(SAMPLING),
    st.sampled_from(LIMITS),
    st.sampled_from([0.0, 4.0, 12.0]),
)
def test_no_draft_changes_a_text(prompt, seed, n, sampling, limits, sharpness):
    given = {"seed": seed, "n": n, "sampling": sampling, "limits": limits}
    expected = list(sample(Recorded(sharpness=sharpness), [prompt], **given))
    assert list(sample(SpeculativeEngine(Recorded(sharpness=sharpness)), [prompt], **given)) == expected


@settings(max_examples=40, deadline=None)
@given(CONFIG, st.integers(0, 2**32), st.integers(0, 3))
def test_no_draft_changes_where_a_text_is_cut_or_how_it_is_streamed(config, seed, number):
    plain = list(stream(ToyEngine(), Bytes(), "天气不错", config=config, seed=seed, sample=number))
    engine = Recorded(scores=ToyEngine().random_scores)
    assert list(stream(engine, Bytes(), "天气不错", config=config, seed=seed, sample=number)) == plain


def test_a_text_that_repeats_takes_few_steps():
    steps = []
    for wrap in (lambda engine: engine, speculative):
        engine = Recorded(max_positions=121, scores=lambda ids: np.eye(12)[(ids[-1] + 1) % 12])
        events = list(sample(wrap(engine), [[3]], seed=0, sampling=GREEDY))
        assert [event.id for event in events[:-1]] == [(4 + place) % 12 for place in range(120)]
        steps.append(len(engine.steps))
    assert steps[0] == 119 and 119 / MAX_TOKENS < steps[1] < 40


@pytest.mark.parametrize("seed", range(4))
def test_a_text_of_chance_costs_few_ids_that_are_not_kept(seed):
    engine = Recorded(sharpness=0.0, vocab_size=40, max_positions=400)
    events = list(sample(speculative(engine), [[3]], seed=seed))
    written = len(events) - 1
    assert written == 399 and len(engine.steps) <= written - 1
    assert engine.scored < written * 1.05


def test_an_engine_whose_logits_depend_on_the_division_of_its_ids_has_no_drafts():
    engine = ToyEngine()
    assert speculative(engine) is engine
    assert isinstance(speculative(Recorded()), SpeculativeEngine)


@pytest.mark.parametrize("max_rows", [1, 3, 12])
def test_rows_of_a_running_batch_draft_and_keep_their_texts_and_log_probabilities(max_rows):
    def run(speculate):
        engine, inboxes = Recorded(sharpness=12.0), []
        scheduler = Scheduler(engine, max_rows=max_rows)
        with scheduler._changed:
            for number in range(12):
                request = RowRequest(
                    prompt=[number % 12] * (1 + number % 5),
                    seed=number,
                    sampling=SAMPLING[number % 4],
                    limits=LIMITS[number % 3],
                    top_logprobs=2,
                    speculate=speculate,
                )
                inboxes.append(SimpleQueue())
                scheduler.submit([request] * (1 + number % 2), inboxes[-1].put)
        scheduler.close(drain=True)
        assert scheduler.stats.running == 0
        return [[inbox.get() for _ in range(inbox.qsize())] for inbox in inboxes], len(engine.steps)

    (found, steps), (expected, most) = run(True), run(False)
    for one, other in zip(found, expected, strict=True):
        for row in (0, 1):
            assert [each for each in one if each.row == row] == [each for each in other if each.row == row]
    assert steps < 0.7 * most if max_rows == 1 else steps <= most


def test_speculation_is_an_option_of_writing():
    for speculation, fewer in (("auto", True), ("off", False)):
        engine = Recorded(sharpness=12.0)
        config = GenerationConfig(sampling=GREEDY, limits=Limits(max_tokens=50), speculation=speculation)
        write(engine, Bytes(), ["a"], config=config, seed=1)
        assert (len(engine.steps) < 49) is fewer
        before = len(engine.steps)
        write(engine, Bytes(), ["a", "aa"], config=config, seed=1)
        assert (len(engine.steps) - before < 49) is fewer
    with pytest.raises(ConfigError, match="speculation is 'on'; expected 'auto' or 'off'"):
        GenerationConfig(speculation="on")


def test_a_stream_that_is_left_amid_a_draft_can_be_followed_by_another():
    engine = Recorded(sharpness=12.0)
    config = GenerationConfig(sampling=GREEDY, stop=StopRules(max_chars=40))
    whole = "".join(stream(engine, Bytes(), "a", config=config, seed=1))
    for count in range(1, 20, 3):
        pieces = stream(engine, Bytes(), "a", config=config, seed=1)
        shown = "".join(piece for piece, _ in zip(pieces, range(count), strict=False))
        assert whole.startswith(shown) and shown


def drafts(ids, **how):
    lookup = PromptLookup()
    for id in ids:
        lookup.append(id)
    return lookup.draft(MAX_TOKENS - 1, **how)


def test_a_draft_is_what_followed_the_last_two_ids_and_repeats_at_the_end_of_the_text():
    assert PromptLookup([1, 2, 3, 4, 1, 2]).draft(5) == [3]
    lookup = PromptLookup([1, 2, 3, 4, 1, 2, 5, 1, 2])
    assert lookup.draft(5) == [5]
    assert PromptLookup([1, 2, 3]).draft(5) == [] == PromptLookup().draft(5)
    for id in [5, 1, 2] * 4:
        lookup.append(id)
    assert lookup.draft(7) == [5, 1, 2, 5, 1, 2, 5][: len(lookup.draft(7))] and len(lookup.draft(7)) > 3
    assert lookup.draft(2) == [5, 1] and lookup.draft(0) == lookup.draft(-1) == []


def test_drafts_grow_with_what_is_kept_and_end_with_what_is_not():
    lookup, sizes = PromptLookup([1, 2] * 2), []
    for id in [1, 2] * 12 + [id for new in range(3, 20) for id in (new, 1, 2)]:
        sizes.append(len(lookup.draft(15)))
        lookup.append(id)
    growing = sizes[:24]
    assert growing == sorted(growing) and growing[0] == 1 and growing[-1] >= 10
    assert sizes[-3:] == [0, 0, 0]


def test_the_more_rows_share_a_step_the_surer_a_draft_is():
    lookup = PromptLookup([1, 2] * 2)
    for id in [1, 2] * 9:
        lookup.append(id)
    sizes = [len(lookup.draft(15, rows=rows)) for rows in (1, 2, 3, 4, 5)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[3] and sizes[-1] == 0


def test_a_copy_of_a_lookup_goes_on_by_itself():
    lookup = PromptLookup([1, 2, 3, 1])
    other = lookup.copy()
    lookup.append(2)
    other.append(9)
    assert lookup.draft(1) == [3] and other.draft(1) == []
