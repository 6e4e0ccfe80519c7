"""The vocabulary that keeps spaces, newlines and case; the fast way gives the ids of the exact one."""

import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanmo.errors import TokenizerError
from hanmo.tokenizers import Lossless, Tokenizer

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKENS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]", "[NL]", "[SP]"),
    *"如果我爱北京，。“”…—!.,-#[]",
    *ALPHABET,
    *("##" + letter for letter in ALPHABET),
    *("Py", "##thon", "14", "hello", "##llo"),
]
OURS = Lossless(TOKENS)
KNOWN = "".join(token for token in TOKENS if len(token) == 1)
texts = st.text(
    st.one_of(
        st.sampled_from(KNOWN + "  \n\n"),
        st.sampled_from("\r\t\0\u200b\u3000\xad龘😀\u2028"),
        st.characters(exclude_categories=["Cs"]),
    )
)


@settings(deadline=None)
@given(texts)
def test_the_fast_ways_give_the_ids_of_the_exact_one(text):
    exact = OURS.encode(text, detail=True).ids
    assert OURS.encode(text).ids == exact
    assert OURS.encode_array(text).tolist() == exact


@settings(deadline=None)
@given(texts, texts)
def test_text_before_a_newline_is_encoded_alike_whatever_follows(first, second):
    ids = OURS.encode(first + "\n").ids
    assert OURS.encode(first + "\n" + second).ids[: len(ids)] == ids


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("如果 Python 3.14，\n", ["如", "果", "[SP]", "Py", "##thon", "3", ".", "14", "，", "[NL]"]),
        ("a  b", ["a", "[SP]", "[SP]", "b"]),
        (" a ", ["[SP]", "a", "[SP]"]),
        ("a 我", ["a", "[SP]", "我"]),
        ("我龘a", ["我", "[UNK]", "a"]),
        ("a\u200bb", ["a", "##b"]),
        ("我\u3000爱\t。\x00", ["我", "[SP]", "爱", "[SP]", "。"]),
        ("[EOS]", ["[", "E", "##O", "##S", "]"]),
        ("", []),
    ],
)
def test_text_becomes_these_tokens(text, expected):
    assert [TOKENS[number] for number in OURS.encode_array(text)] == expected


def test_a_very_long_word_is_encoded_whole():
    assert OURS.decode(OURS.encode_array("ab" * 100_000)) == "ab" * 100_000


def test_a_pickled_tokenizer_encodes_the_same():
    again = pickle.loads(pickle.dumps(OURS))
    assert np.array_equal(again.encode_array("如果 hello"), OURS.encode_array("如果 hello"))


@settings(deadline=None)
@given(st.text(st.sampled_from(KNOWN + " \n")))
def test_nothing_of_a_text_is_lost(text):
    assert OURS.decode(OURS.encode(text).ids) == text


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TOKENS) - 1)), st.booleans())
def test_streamed_pieces_joined_are_the_whole(ids, special):
    stream = OURS.stream(special=special)
    assert "".join([stream.push(number) for number in ids]) + stream.flush() == OURS.decode(ids, special=special)


@settings(deadline=None)
@given(texts)
def test_offsets_slice_the_text(text):
    encoding = OURS.encode(text, detail=True)
    for token, (start, stop) in zip(encoding.tokens, encoding.offsets, strict=True):
        shown = "".join(c for c in text[start:stop] if len(OURS.encode_array(c)))
        if token == "[NL]":
            assert shown in "\r\n" and shown
        elif token not in ("[SP]", "[UNK]"):
            assert shown == token.removeprefix("##")


def test_a_line_reads_as_its_picture_says():
    encoding = OURS.encode("如果 Python 3.14，\n", detail=True)
    assert encoding.tokens == ["如", "果", "[SP]", "Py", "##thon", "3", ".", "14", "，", "[NL]"]
    assert OURS.encode("a\r\nb\rc", detail=True).tokens == ["a", "[NL]", "b", "[NL]", "c"]


def test_marks_are_left_out_unless_asked_for():
    ids = OURS.encode("我[MASK]龘", special=True, ends=True).ids
    assert OURS.decode(ids) == "我"
    assert OURS.decode(ids, special=True) == "我[MASK][UNK][EOS]"
    assert OURS.encode("我[NL]", special=True).ids == OURS.encode("我[NL]").ids
    assert (OURS.special.pad, OURS.special.end, OURS.special.start) == (0, 5, None)
    assert isinstance(OURS, Tokenizer)
    assert OURS.vocab_size == len(TOKENS)


def test_a_vocabulary_that_loses_something_is_refused(tmp_path):
    with pytest.raises(
        TokenizerError, match=re.escape("lacks 2 tokens that lossless tokenization needs, first ['[NL]', '##z']")
    ):
        Lossless([token for token in TOKENS if token not in ("[NL]", "##z")])
    with pytest.raises(TokenizerError, match=re.escape("id 0 is '[UNK]', expected '[PAD]'")):
        Lossless([TOKENS[1], TOKENS[0], *TOKENS[2:]])
    with pytest.raises(TokenizerError, match="the vocabulary holds '我' twice"):
        Lossless([*TOKENS, "我"])
    with pytest.raises(TokenizerError, match=f"the id {len(TOKENS)} is outside"):
        OURS.decode([len(TOKENS)])
    (tmp_path / "vocab.txt").write_text("".join(token + "\n" for token in TOKENS), encoding="utf-8")
    assert Lossless(tmp_path / "vocab.txt").encode("我").ids == OURS.encode("我").ids
