import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyEngine

from hanmo.errors import CheckpointError, ConfigError, PromptError
from hanmo.generate import GREEDY, Limits, Sampling, Token, beam_search, sample


def log_probability(engine, prompt, ids):
    total = 0.0
    for place, id in enumerate(ids):
        scores = np.asarray(engine.random_scores([*prompt, *ids[:place]]), np.float32).astype(float)
        total += scores[id] - math.log(np.exp(scores).sum())
    return total


def every_text(vocab, length, end_ids):
    """All texts that end by an end id or by their length."""
    for size in range(1, length + 1):
        for ids in itertools.product(range(vocab), repeat=size):
            open_so_far = not set(ids[:-1]) & set(end_ids)
            if open_so_far and (size == length or ids[-1] in end_ids):
                yield ids


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from([0.0, 0.7, 1.0]), st.sampled_from([(), (2,)])
)
def test_a_beam_wide_enough_finds_the_best_of_all_texts(prompt, length_penalty, end_ids):
    engine = ToyEngine(vocab_size=5)
    scores = {
        ids: log_probability(engine, prompt, ids) / len(ids) ** length_penalty for ids in every_text(5, 3, end_ids)
    }
    best = sorted(scores, key=lambda ids: -scores[ids])[:4]
    found = beam_search(
        engine, prompt, 125, limits=Limits(max_tokens=3, end_ids=end_ids), length_penalty=length_penalty
    )
    assert [beam.ids for beam in found[:4]] == best
    assert np.allclose([beam.score for beam in found[:4]], [scores[ids] for ids in best])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=4), st.integers(1, 6), st.booleans())
def test_scores_are_those_of_the_ids_so_the_cache_follows_its_parents(prompt, num_beams, on_torch):
    engine = ToyEngine(convert=torch.from_numpy if on_torch else np.asarray)
    found = beam_search(engine, prompt, num_beams, limits=Limits(max_tokens=7, end_ids=(3,)))
    assert 1 <= len(found) <= num_beams
    assert [beam.score for beam in found] == sorted((beam.score for beam in found), reverse=True)
    assert len({beam.ids for beam in found}) == len(found)
    for beam in found:
        assert beam.score == pytest.approx(log_probability(engine, prompt, beam.ids))
        assert (beam.reason, beam.ids[-1] == 3) in [("end", True), ("length", False)]
        assert 3 not in beam.ids[:-1]


@pytest.mark.parametrize("prompt", [[1], [5, 6, 7], [11]])
def test_a_beam_of_one_is_the_greedy_choice(prompt):
    limits = Limits(max_tokens=10, end_ids=(3,))
    events = sample(ToyEngine(), [prompt], seed=0, sampling=GREEDY, limits=limits)
    greedy = tuple(event.id for event in events if isinstance(event, Token))
    assert [beam.ids for beam in beam_search(ToyEngine(), prompt, 1, limits=limits)] == [greedy]


def test_rules_and_min_tokens_hold_for_beams():
    sampling = Sampling(banned=(0, 1), no_repeat_ngram=1)
    limits = Limits(max_tokens=6, min_tokens=4, end_ids=(3,))
    for beam in beam_search(ToyEngine(), [5], 4, sampling=sampling, limits=limits):
        assert not {0, 1, 5} & set(beam.ids) and len(set(beam.ids)) == len(beam.ids)
        assert 3 not in beam.ids[:3]


def test_a_stop_answer_ends_a_row():
    found = beam_search(
        ToyEngine(), [5], 3, limits=Limits(max_tokens=6), stop=lambda ids: "sentence" if len(ids) == 2 else None
    )
    assert [(len(beam.ids), beam.reason) for beam in found] == [(2, "sentence")] * 3


def test_beams_end_at_the_last_position():
    found = beam_search(ToyEngine(max_positions=6), [1, 2, 3], 2)
    assert [(len(beam.ids), beam.reason) for beam in found] == [(3, "context")] * 2
    assert [(beam.ids, beam.reason) for beam in beam_search(ToyEngine(max_positions=3), [1, 2, 3], 2)] == [
        ((), "context")
    ]


def test_a_beam_wider_than_the_vocabulary_takes_what_there_is():
    assert len(beam_search(ToyEngine(vocab_size=3), [1], 9, limits=Limits(max_tokens=1))) == 3


def test_the_search_stops_when_no_open_row_can_enter_the_pool():
    def certain(ids):
        scores = np.full(12, -20.0)
        scores[3] = 20
        return scores

    engine = ToyEngine(scores=certain)
    assert beam_search(engine, [1], 1, limits=Limits(max_tokens=50, end_ids=(3,)))[0].ids == (3,)
    assert engine.steps == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: beam_search(ToyEngine(), [1], 0), ConfigError, "num_beams is 0; expected a whole number of 1 or more"),
        (lambda: beam_search(ToyEngine(), [], 2), PromptError, "the prompt is empty"),
        (lambda: beam_search(ToyEngine(max_positions=None), [1], 2), ConfigError, "max_tokens is None"),
        (
            lambda: beam_search(ToyEngine(scores=lambda ids: np.full(12, np.nan)), [1], 2),
            CheckpointError,
            "12 of the model's 12 scores",
        ),
        (
            lambda: beam_search(ToyEngine(), [5], 2, sampling=Sampling(allowed=(5, 6), no_repeat_ngram=1)),
            ConfigError,
            "the rules leave none of 12 ids",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
