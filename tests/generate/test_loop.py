import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyEngine

from hanmo.errors import CheckpointError, ConfigError, PromptError
from hanmo.generate import GREEDY, End, Limits, Sampling, Token, keep_last, sample


def rows_of(events, count):
    """Collect ids and end reasons by row, and check that nothing comes after an end."""
    ids, ends = [[] for _ in range(count)], [None] * count
    for event in events:
        assert ends[event.row] is None
        if isinstance(event, Token):
            ids[event.row].append(event.id)
        else:
            ends[event.row] = event.reason
    assert None not in ends
    return ids, ends


def follows(ids):
    """Score id + 1 of the last id highest: what a greedy choice writes is known."""
    scores = np.zeros(12)
    scores[(ids[-1] + 1) % 12] = 5
    return scores


def test_greedy_writes_the_highest_scored_id_until_the_length_is_reached():
    events = list(sample(ToyEngine(scores=follows), [[3]], seed=0, sampling=GREEDY, limits=Limits(max_tokens=3)))
    assert events == [Token(0, 4), Token(0, 5), Token(0, 6), End(0, "length")]


def test_an_end_id_is_written_and_ends_its_row_alone():
    limits = Limits(max_tokens=6, end_ids=(7,))
    engine = ToyEngine(scores=follows)
    ids, ends = rows_of(sample(engine, [[3], [9, 5], [8]], seed=0, sampling=GREEDY, limits=limits), 3)
    assert ids == [[4, 5, 6, 7], [6, 7], [9, 10, 11, 0, 1, 2]]
    assert ends == ["end", "end", "length"]
    assert engine.steps == [3, 2, 2, 1, 1]  # an ended row costs nothing any more


def test_before_min_tokens_no_end_id_is_chosen_even_if_only_one_id_may_stay():
    limits = Limits(max_tokens=8, min_tokens=5, end_ids=(4, 0))
    ids, ends = rows_of(sample(ToyEngine(scores=follows), [[3]], seed=0, sampling=GREEDY, limits=limits), 1)
    assert len(ids[0]) >= 5 and not {4, 0} & set(ids[0][:4])
    assert ends[0] in ("end", "length")


def test_writing_ends_at_the_last_position_that_the_model_knows():
    engine = ToyEngine(max_positions=10, scores=follows)
    ids, ends = rows_of(sample(engine, [[1] * 4, [2] * 9, [3] * 10], seed=0, sampling=GREEDY), 3)
    assert [len(row) for row in ids] == [6, 1, 0]
    assert ends == ["context"] * 3
    assert engine.rooms == [6]


def test_the_prompt_is_read_once_for_all_samples():
    engine = ToyEngine()
    rows_of(sample(engine, [[1, 2, 3]], seed=0, n=5, limits=Limits(max_tokens=4)), 5)
    assert engine.prefilled == [[[1, 2, 3]]] and engine.rooms == [4] and engine.steps == [5, 5, 5]


PROMPTS = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=6), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(PROMPTS, st.integers(0, 2**64 - 1), st.integers(1, 4), st.sampled_from([(), (3,), (1, 8)]), st.booleans())
def test_samples_together_equal_the_same_one_by_one(prompts, seed, n, end_ids, on_torch):
    """Batch neighbours, their order and the array library do not matter: only seed and sample number do."""
    sampling = Sampling(top_k=8, top_p=0.95, temperature=1.2, no_repeat_ngram=3, repetition_penalty=1.1)
    limits = Limits(max_tokens=9, end_ids=end_ids)
    engine = ToyEngine(max_positions=12, convert=torch.from_numpy if on_torch else np.asarray)
    together = rows_of(sample(engine, prompts, seed=seed, n=n, sampling=sampling, limits=limits), len(prompts) * n)
    for row in range(len(prompts) * n):
        prompt, number = prompts[row // n], row % n
        alone = sample(ToyEngine(max_positions=12), [prompt], seed=seed, first=number, sampling=sampling, limits=limits)
        assert rows_of(alone, 1) == ([together[0][row]], [together[1][row]])


def test_another_seed_or_sample_gives_another_text():
    limits = Limits(max_tokens=12)
    texts = {
        tuple(rows_of(sample(ToyEngine(), [[1]], seed=seed, first=first, limits=limits), 1)[0][0])
        for seed in range(3)
        for first in range(3)
    }
    assert len(texts) == 9


def test_the_same_prompt_twice_gives_the_same_text():
    ids, _ = rows_of(sample(ToyEngine(), [[1, 2], [1, 2]], seed=5, n=2, limits=Limits(max_tokens=6)), 4)
    assert ids[:2] == ids[2:] and ids[0] != ids[1]


def test_a_stop_answer_ends_the_row_and_is_its_reason():
    asked = []

    def stop(row, id):
        asked.append((row, id))
        return "sentence" if (row, id) == (1, 7) else None

    events = sample(
        ToyEngine(scores=follows), [[3], [5]], seed=0, sampling=GREEDY, limits=Limits(max_tokens=2), stop=stop
    )
    assert rows_of(events, 2) == ([[4, 5], [6, 7]], ["length", "sentence"])
    assert asked == [(0, 4), (1, 6), (0, 5), (1, 7)]


def test_the_prompt_counts_for_repetition_rules_unless_told_otherwise():
    sampling = Sampling(temperature=0, no_repeat_ngram=1)
    limits = Limits(max_tokens=1)
    assert rows_of(sample(ToyEngine(scores=follows), [[4, 3]], seed=0, sampling=sampling, limits=limits), 1)[0] != [[4]]
    events = sample(ToyEngine(scores=follows), [[4, 3]], seed=0, sampling=sampling, limits=limits, history=False)
    assert rows_of(events, 1)[0] == [[4]]


def test_nothing_is_computed_before_it_is_asked_for():
    engine = ToyEngine()
    events = sample(engine, [[1]], seed=0, limits=Limits(max_tokens=5))
    assert engine.prefilled == []
    next(events)
    assert engine.prefilled == [[[1]]] and engine.steps == []


def test_a_model_without_a_last_position_needs_max_tokens():
    limits = Limits(max_tokens=70)
    engine = ToyEngine(max_positions=None)
    assert len(rows_of(sample(engine, [[1]], seed=0, limits=limits), 1)[0][0]) == 70
    with pytest.raises(ConfigError, match="max_tokens is None and this model has no last position; give max_tokens"):
        sample(ToyEngine(max_positions=None), [[1]], seed=0)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty; give at least one token"),
        ([1, 12], "id 12 at position 1 of the prompt is outside the model's ids 0 to 11"),
        ([-1], "id -1 at position 0"),
        ([1] * 65, "the prompt has 65 tokens, the model knows 64 positions; shorten it, or keep only its end"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_at_the_call(prompt, message):
    with pytest.raises(PromptError, match=message):
        sample(ToyEngine(), [[1], prompt], seed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(ToyEngine(), [[1]], seed=0, n=0), "n is 0; expected a whole number of 1 or more"),
        (lambda: sample(ToyEngine(), [[1]], seed=0, first=-1), "first is -1; expected a whole number of 0 or more"),
        (lambda: sample(ToyEngine(), [[1]], seed=-1), "seed is -1"),
        (lambda: Limits(max_tokens=0), "max_tokens is 0; expected a whole number of 1 or more"),
        (lambda: Limits(min_tokens=-2), "min_tokens is -2; expected a whole number of 0 or more"),
        (lambda: Limits(max_tokens=3, min_tokens=4), "min_tokens is 4, max_tokens 3"),
    ],
)
def test_settings_outside_their_range_are_refused_at_the_call(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_p=0.9), Sampling(top_k=3, repetition_penalty=1.2)])
def test_weights_of_nan_are_one_clear_error(sampling):
    broken = ToyEngine(scores=lambda ids: np.full(12, np.nan))
    with pytest.raises(CheckpointError, match="12 of the model's 12 scores for the next id are NaN or infinite"):
        list(sample(broken, [[1]], seed=0, sampling=sampling))


def test_rules_that_run_out_of_ids_say_so():
    sampling = Sampling(no_repeat_ngram=1, temperature=0.5, top_p=0.9)
    with pytest.raises(ConfigError, match="the rules leave none of 12 ids to choose from"):
        list(sample(ToyEngine(), [[1]], seed=0, sampling=sampling))


def test_keep_last_cuts_a_long_prompt_from_the_left_and_leaves_room():
    prompt = list(range(100))
    assert keep_last(prompt, 100) == prompt and keep_last(prompt, None) == prompt
    assert keep_last(prompt, 64, max_tokens=10) == prompt[-54:]
    assert keep_last(prompt, 64, max_tokens=60) == keep_last(prompt, 64) == prompt[-32:]
    assert keep_last(prompt, 1, max_tokens=5) == prompt[-1:]
