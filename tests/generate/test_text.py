import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyDynamicEngine, ToyEngine

from hanmo.errors import CheckpointError, ConfigError, PromptError
from hanmo.generate import GREEDY, Limits, Sampling, loop
from hanmo.generate.options import GenerationConfig
from hanmo.generate.stop import NEVER, Stopper, StopRules
from hanmo.generate.text import read_prompt, search, stream, write, write_each
from hanmo.tokenizers import Encoding, SpecialIds, WordPiece
from hanmo.tokenizers.protocol import check_text
from hanmo.tokenizers.streams import BytesStream

GOOD, MAN = "好".encode(), "👨‍👩".encode()


def cut(text, rules, *, before=""):
    """Cut a complete text: the text that is left, and the reason if a rule was met."""
    stopper = Stopper(rules, before=before)
    return stopper.push(text) + stopper.flush(), stopper.reason


PIECES = [b"?", GOOD[:2], GOOD[2:], "。".encode(), "”".encode(), "“".encode(), b"a", b"\n", MAN[:5], MAN[5:]]
PIECES += ["天气不错".encode(), b" "]


class Bytes:
    """Ids that are parts of characters: the hardest vocabulary for a stream."""

    vocab_size = len(PIECES)
    special = SpecialIds(unk=0)

    def encode(self, text, *, ends=None, special=False):
        check_text(text)
        whole = {piece.decode(): id for id, piece in enumerate(PIECES) if id in (3, 4, 5, 6, 10)}
        ids = [whole.get(text[place : place + 4], whole.get(text[place], 0)) for place in range(len(text))]
        ids = [*ids, 9] if ends else ids
        return Encoding(ids, len(ids))

    def stream(self):
        return BytesStream(lambda number: PIECES[number], {})


def decode(ids):
    return b"".join(PIECES[id] for id in ids).decode("utf-8", "replace")


RULES = st.builds(
    StopRules,
    sentence_after=st.none() | st.integers(0, 10),
    strings=st.lists(st.sampled_from(["a\n", "。。", "好。", "a"]), max_size=2).map(tuple),
    max_chars=st.none() | st.integers(1, 12),
)
CONFIG = st.builds(
    GenerationConfig,
    sampling=st.sampled_from([Sampling(), Sampling(top_k=4), Sampling(temperature=2.0, no_repeat_ngram=4)]),
    limits=st.sampled_from([Limits(max_tokens=14), Limits(max_tokens=30, end_ids=(9,)), Limits()]),
    stop=RULES,
)


@settings(max_examples=120, deadline=None)
@given(CONFIG, st.integers(0, 2**32), st.integers(0, 3))
def test_streamed_pieces_joined_are_the_written_text_and_the_cut_of_the_whole(config, seed, sample):
    engine = ToyEngine(max_positions=40)
    pieces = stream(engine, Bytes(), "天气不错", config=config, seed=seed, sample=sample)
    shown = list(pieces)
    [[written]] = write(engine, Bytes(), ["天气不错"], config=config, seed=seed, first=sample)
    assert "".join(shown) == pieces.text == written.text
    assert all(shown) and pieces.reason == written.reason and pieces.seed == written.seed == seed
    ids = (
        written.ids[:-1]
        if written.reason == "end" or (written.ids[-1:] == (9,) and 9 in config.limits.end_ids)
        else written.ids
    )
    text, reason = cut(decode(ids), config.stop, before="天气不错")
    assert written.text == text
    assert reason is None or written.reason == reason
    assert reason is not None or written.reason in ("end", "length", "context")


@settings(max_examples=40, deadline=None)
@given(CONFIG, st.integers(0, 2**32), st.integers(1, 4))
def test_n_texts_at_once_are_the_same_one_by_one(config, seed, n):
    together = write(ToyEngine(), Bytes(), ["天气不错", "a“"], n=n, config=config, seed=seed)
    assert [len(texts) for texts in together] == [n, n]
    for text, texts in zip(["天气不错", "a“"], together, strict=True):
        for number, written in enumerate(texts):
            alone = write(ToyEngine(), Bytes(), [text], config=config, seed=seed, first=number)
            assert alone == [[written]] and (written.seed, written.sample) == (seed, number)


def test_many_texts_are_written_so_many_at_once(monkeypatch):
    asked = {"n": 8, "seed": [3, 4], "first": 5}
    whole = write(ToyEngine(), Bytes(), ["天气不错", "a“"], **asked)
    assert [len(texts) for texts in whole] == [8, 8]
    rows = []
    monkeypatch.setattr("hanmo.generate.text._MAX_SAMPLES", 3)
    monkeypatch.setattr(loop, "sample", lambda *a, _sample=loop.sample, **k: rows.append(k["n"]) or _sample(*a, **k))
    assert write(ToyEngine(), Bytes(), ["天气不错", "a“"], **asked) == whole
    assert rows == [3, 3, 2]


@settings(max_examples=12, deadline=None)
@given(CONFIG, st.integers(1, 3), st.integers(1, 5))
def test_texts_that_join_when_others_end_are_the_same_one_by_one(config, n, max_rows):
    texts = ["天气不错", "。天气不错", "”天气不错", "天气不错天气不错", "a"]
    engine = ToyDynamicEngine(max_positions=40)
    items = ((text, read_prompt(engine, Bytes(), text, config), seed) for seed, text in enumerate(texts))
    found = list(write_each(engine, Bytes(), items, n=n, first=2, config=config, max_rows=max_rows))
    assert max(engine.steps) <= max_rows
    for seed, text in enumerate(texts):
        alone = write(ToyEngine(max_positions=40), Bytes(), [text], n=n, config=config, seed=seed, first=2)
        assert found[seed] == alone[0]


def test_several_texts_of_an_engine_with_dynamic_rows_are_refilled():
    config = GenerationConfig(limits=Limits(max_tokens=14), stop=StopRules(max_chars=4))
    seeds, texts = list(range(50)), ["天气不错"] * 50
    engine = ToyDynamicEngine()
    found = write(engine, Bytes(), texts, config=config, seed=seeds)
    assert found == write(ToyEngine(), Bytes(), texts, config=config, seed=seeds)
    assert engine.steps[0] == max(engine.steps) == 32
    assert len(engine.steps) <= sum(engine.steps) / 32 + 14  # full until none waits, and then no longer than a text
    broken = ToyDynamicEngine(scores=lambda ids: np.full(12, np.nan))
    with pytest.raises(CheckpointError, match="NaN"):
        write(broken, Bytes(), texts, config=config, seed=seeds)


def test_each_text_may_have_a_seed_of_its_own():
    together = write(ToyEngine(), Bytes(), ["天气不错", "a“", "a"], n=2, seed=[5, 2**64 - 1, 5])
    alone = [
        write(ToyEngine(), Bytes(), [text], n=2, seed=seed)[0]
        for text, seed in zip(["天气不错", "a“", "a"], [5, 2**64 - 1, 5], strict=True)
    ]
    assert together == alone and [texts[0].seed for texts in together] == [5, 2**64 - 1, 5]
    with pytest.raises(ConfigError, match="there are 2 seeds and 1 prompts"):
        write(ToyEngine(), Bytes(), ["a"], seed=[1, 2])
    with pytest.raises(ConfigError, match="seed is -3"):
        write(ToyEngine(), Bytes(), ["a", "a"], seed=[1, -3])


def test_no_more_is_computed_than_what_was_taken_from_a_stream():
    engine = ToyEngine()
    pieces = stream(engine, Bytes(), "aa", config=GenerationConfig(sampling=Sampling(allowed=(6,))), seed=1)
    assert list(itertools.islice(pieces, 3)) == ["a"] * 3
    assert (len(engine.steps), pieces.text, pieces.reason) == (2, "aaa", None)


def test_the_end_id_is_no_part_of_the_text():
    config = GenerationConfig(sampling=GREEDY, limits=Limits(max_tokens=5, end_ids=(7,)))
    follows = ToyEngine(scores=lambda ids: np.eye(12)[(ids[-1] + 1) % 12])
    [[written]] = write(follows, Bytes(), ["“"], config=config)
    assert (written.text, written.ids, written.reason) == ("a", (6, 7), "end")
    assert search(follows, Bytes(), "“", 1, config=config)[0].text == "a"


def test_half_a_character_at_the_end_is_shown_as_replaced_not_lost():
    config = GenerationConfig(sampling=Sampling(allowed=(1,)), limits=Limits(max_tokens=1))
    assert write(ToyEngine(), Bytes(), ["a"], config=config)[0][0].text == "\ufffd"


def test_the_prompt_opens_quotes_for_the_stop_rules():
    config = GenerationConfig(sampling=GREEDY, stop=StopRules(sentence_after=0))
    quote = ToyEngine(scores=lambda ids: np.eye(12)[{5: 10, 10: 3, 3: 4, 4: 6}.get(ids[-1], 6)])
    pieces = stream(quote, Bytes(), "a“", config=config, seed=0)
    assert list(pieces) == ["天气不错", "。", "”"] and pieces.reason == "sentence"


def test_a_fresh_seed_is_told_and_repeats_the_text():
    first = stream(ToyEngine(), Bytes(), "a")
    text = "".join(first)
    again = stream(ToyEngine(), Bytes(), "a", seed=first.seed)
    assert "".join(again) == text and len(text) > 10
    assert len({stream(ToyEngine(), Bytes(), "a").seed for _ in range(5)}) > 1


def test_beams_are_texts_cut_by_the_same_rules():
    plain = GenerationConfig(limits=Limits(max_tokens=6))
    beams = search(ToyEngine(), Bytes(), "a", 3, config=plain)
    assert [beam.text for beam in beams] == [decode(beam.ids) for beam in beams] and len(beams) == 3
    assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
    stop = StopRules(sentence_after=1, max_chars=5)
    for beam in search(ToyEngine(), Bytes(), "a", 3, config=GenerationConfig(limits=Limits(max_tokens=9), stop=stop)):
        assert (beam.text, beam.reason) == cut(decode(beam.ids), stop) or beam.reason == "length"
        assert beam.seed is None


def test_a_long_prompt_is_an_error_or_is_cut_from_the_left():
    engine = ToyEngine(max_positions=20)
    with pytest.raises(PromptError, match="the prompt has 30 tokens, the model knows 20 positions"):
        stream(engine, Bytes(), "a" * 30)
    config = GenerationConfig(keep_last=True, limits=Limits(max_tokens=4))
    [[written]] = write(engine, Bytes(), ["。" * 10 + "a" * 16], config=config)
    assert engine.prefilled == [[[6] * 16]] and len(written.ids) == 4


def test_a_long_source_is_cut_between_its_marks_and_a_long_text_with_the_mark_before_it():
    engine, asked = ToyEngine(max_positions=20), {"keep_last": True, "limits": Limits(max_tokens=4)}
    source = GenerationConfig(**asked, continues=False, before=(8,), after=(9,))
    assert read_prompt(engine, Bytes(), "。" * 9 + "a" * 14, source) == [8, *[6] * 14, 9]
    assert read_prompt(engine, Bytes(), "a" * 30, GenerationConfig(**asked, before=(8,))) == [6] * 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty; give at least one character"),
        ("天\ud83d气", r"the lone surrogate U\+D83D at position 1"),
        ("天气\0", r"the prompt holds the character U\+0000 at position 2"),
        ("zzz", "the prompt 'zzz' has no character that the vocabulary of 12 tokens knows"),
    ],
)
def test_a_prompt_that_is_no_usable_text_is_refused_at_the_call(text, message):
    for call in (stream, search):
        with pytest.raises(PromptError, match=message):
            call(ToyEngine(), Bytes(), text, *([2] if call is search else []))
    with pytest.raises(PromptError, match=message):
        write(ToyEngine(), Bytes(), ["a", text])


def test_the_prompt_settles_the_first_space_unless_it_is_the_source_of_an_encoder():
    words = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "day", "##s", "天"])
    follows = ToyEngine(vocab_size=8, scores=lambda ids: np.eye(8)[{4: 5, 5: 6, 6: 7}.get(ids[-1], 5)])
    limits = Limits(max_tokens=3)
    config = GenerationConfig(sampling=GREEDY, limits=limits)
    assert list(stream(follows, words, "good", config=config)) == [" day", "s", "天"]
    assert list(stream(follows, words, "天", config=config)) == ["day", "s", "天"]
    assert list(stream(follows, words, "good ", config=config)) == ["day", "s", "天"]
    apart = GenerationConfig(sampling=GREEDY, limits=limits, continues=False)
    assert list(stream(follows, words, "good", config=apart)) == ["day", "s", "天"]


def test_marks_are_added_to_the_prompt_where_the_model_wants_them():
    assert read_prompt(ToyEngine(), Bytes(), "a") == [6]
    assert read_prompt(ToyEngine(), Bytes(), "a", GenerationConfig(before=(8,), after=(9,))) == [8, 6, 9]


def test_settings_are_refused_at_the_call():
    with pytest.raises(ConfigError, match="n is 0; expected a whole number of 1 or more"):
        write(ToyEngine(), Bytes(), ["a"], n=0)
    with pytest.raises(ConfigError, match="seed is -7"):
        stream(ToyEngine(), Bytes(), "a", seed=-7)
    with pytest.raises(ConfigError, match="num_beams is 0"):
        search(ToyEngine(), Bytes(), "a", 0)


def test_weights_of_nan_are_one_clear_error():
    broken = ToyEngine(scores=lambda ids: np.full(12, np.nan))
    with pytest.raises(CheckpointError, match="NaN or infinite; its weights are probably damaged"):
        "".join(stream(broken, Bytes(), "a"))


def test_the_default_stops_at_nothing():
    assert GenerationConfig().stop == NEVER
