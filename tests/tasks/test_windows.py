"""Windows cover a text without a gap, offsets are those of the text handed in, and one window decides about a span."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tasks import VOCABULARY

from hanmo.errors import ConfigError
from hanmo.tasks.windows import Part, Tokens, Window, decides, deciding, make_windows, merge_tokens, tokenize
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("天　地", ["天", "地"]),  # U+3000
        ("Ａ，１", ["Ａ", "，", "１"]),  # full width
        ("😀天", ["😀", "天"]),
        ("é天", ["é", "天"]),
        ("e\u0301天", ["e\u0301", "天"]),  # the accent belongs to its letter
        ("a\u200b天", ["a", "天"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("\U0002a6d6天\U00031350", ["\U0002a6d6", "天", "\U00031350"]),
        ("İa天", ["İa", "天"]),
    ],
)
def test_offsets_are_code_points_of_the_text(text, parts):
    tokens = tokenize(TOKENIZER, text, offsets=True)
    assert [text[start:stop] for start, stop in tokens.offsets] == parts
    for number, part in enumerate(parts):
        start = text.index(part)
        assert tokens.find(start, start + len(part)) == (number, number + 1)
        assert tokens.characters(number, number + 1) == (start, start + len(part))


def test_a_span_that_begins_inside_a_token_has_no_tokens():
    tokens = tokenize(TOKENIZER, "天 xyz 地", offsets=True)
    assert [tokens.text[a:b] for a, b in tokens.offsets] == ["天", "xyz", "地"]
    assert tokens.find(2, 5) == (1, 2)
    assert tokens.find(1, 6) == (1, 2)
    assert tokens.find(3, 5) is None
    assert tokens.find(1, 2) is None


def windows_of(*texts: str, **options: Any) -> list[Window]:
    return make_windows(TOKENIZER, [tokenize(TOKENIZER, text) for text in texts], **options)


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=2),
    max_length=st.integers(6, 40),
    stride=st.none() | st.integers(1, 40),
)
def test_windows_cover_everything_and_keep_their_length(lengths, max_length, stride):
    texts = [("天地玄黄" * 15)[:length] for length in lengths]
    room = max_length - len(TOKENIZER.encode(*[""] * len(lengths)).ids)
    if stride is not None and stride > room:
        with pytest.raises(ConfigError, match=f"stride is {stride}; expected at most {room}, the tokens that a window"):
            windows_of(*texts, max_length=max_length, stride=stride)
        return
    windows = windows_of(*texts, max_length=max_length, stride=stride)
    plain = TOKENIZER.encode(*texts)
    if len(plain.ids) <= max_length:
        assert [window.ids for window in windows] == [plain.ids]
        assert windows[0].segments == plain.segments
    for window in windows:
        assert len(window.ids) == len(window.segments) <= max_length
        for text, part in zip(texts, window.parts, strict=True):
            assert (
                window.ids[part.at : part.at + len(part)]
                == TOKENIZER.encode(text, ends=False).ids[part.start : part.stop]
            )
    pairs = {tuple((part.start, part.stop) for part in window.parts) for window in windows}
    assert len(pairs) == len(windows)
    for place, length in enumerate(lengths):
        assert {n for w in windows for n in range(w.parts[place].start, w.parts[place].stop)} == set(range(length))


def test_the_shorter_text_of_a_pair_is_in_every_window():
    windows = windows_of("天地", "玄" * 50, max_length=15)
    assert len(windows) > 5
    assert {(window.parts[0].start, window.parts[0].stop) for window in windows} == {(0, 2)}
    swapped = windows_of("玄" * 50, "天地", max_length=15)
    assert {(window.parts[1].start, window.parts[1].stop) for window in swapped} == {(0, 2)}


def test_a_window_without_room_is_refused():
    with pytest.raises(ConfigError, match="max_length is 2; 2 marks leave no room"):
        windows_of("天", max_length=2)
    with pytest.raises(ConfigError, match="max_length is 4; 3 marks leave no room"):
        windows_of("天", "地", max_length=4)


def test_the_window_decides_that_sees_most_around_a_span():
    windows = windows_of("天" * 25, max_length=12, stride=5)
    assert [(w.parts[0].start, w.parts[0].stop) for w in windows] == [(0, 10), (5, 15), (10, 20), (15, 25)]
    assert [deciding(windows, n, n + 1) for n in range(25)] == [0] * 8 + [1] * 5 + [2] * 5 + [3] * 7
    assert deciding(windows, 8, 12) == 1
    assert deciding(windows, 4, 16) is None


@given(length=st.integers(1, 60), max_length=st.integers(4, 20), size=st.integers(1, 4))
def test_every_short_span_has_one_deciding_window(length, max_length, size):
    windows = windows_of("天" * length, max_length=max_length, stride=max(1, max_length - 2 - size))
    for start in range(max(0, length - size) + 1 if size <= min(length, max_length - 2) else 0):
        chosen = deciding(windows, start, start + size)
        assert chosen is not None
        whole = [n for n, window in enumerate(windows) if window.parts[0].place(start, start + size) is not None]
        assert [n for n in whole if decides(windows, n, start, start + size)] == [chosen]


def test_merged_tokens_come_from_the_deciding_window():
    windows = windows_of("天" * 25, max_length=12, stride=5)
    arrays = [np.full((len(window), 2), number) for number, window in enumerate(windows)]
    merged = merge_tokens(windows, arrays)
    assert merged[:, 0].tolist() == [deciding(windows, n, n + 1) for n in range(25)]
    for number, window in enumerate(windows):  # each token's own number, wherever it is in a window
        arrays[number][1:-1] = np.arange(window.parts[0].start, window.parts[0].stop)[:, None]
    assert merge_tokens(windows, arrays)[:, 1].tolist() == list(range(25))
    assert merge_tokens(windows[:1], [np.arange(12)]).tolist() == list(range(1, 11))


def test_a_part_places_tokens_in_a_window():
    part = Part(at=4, start=10, stop=20)
    assert part.place(10, 12) == (4, 6)
    assert part.place(19, 20) == (13, 14)
    assert part.place(9, 12) is None
    assert part.place(19, 21) is None


@pytest.mark.parametrize("texts", [2, 1])
def test_long_texts_are_merged_without_a_pass_over_all_windows_for_each_token(texts):
    parts = [Part(1, start, start + 4) for start in range(0, 40_000, 2)]
    windows = [Window([0] * 6, [0] * 6, (part,) * texts) for part in parts]
    merged = merge_tokens(windows, [np.arange(6) + part.start for part in parts], text=texts - 1)
    assert (merged == np.arange(len(merged)) + 1).all()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12), st.integers(0, 30), st.integers(1, 6))
def test_tokens_that_cover_a_part_are_those_that_overlap_it(steps, start, size):
    offsets, at = [], 0
    for gap, length in steps:
        offsets.append((at + gap, at + gap + length))
        at += gap + length
    tokens = Tokens("天" * 60, [0] * len(offsets), offsets)
    inside = [n for n, (first, last) in enumerate(offsets) if first < start + size and last > start]
    found = tokens.cover(start, start + size)
    assert found == ((inside[0], inside[-1] + 1) if inside else (0, 0))
