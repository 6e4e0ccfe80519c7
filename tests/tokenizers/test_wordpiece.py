"""WordPiece: goldens of bert4keras, fast path against exact path, decoding."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanmo.errors import MissingFile, PromptError, TokenizerError
from hanmo.tokenizers import Encoding, Tokenizer, WordPiece
from hanmo.tokenizers.bert_rules import fold
from hanmo.tokenizers.codes import folded_codes, text_of

GOLDEN = json.loads((Path(__file__).parent.parent / "data/goldens/tokenizer.json").read_text(encoding="utf-8"))
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
TOKENS = [
    *MARKS,
    *"我爱北京天安门不错今气，。！？：〝〞‹›‥︱‖「」·,.;:!?'\"()-[]#$_",
    *("hello", "world", "play", "##ing", "##s", "a", "b", "c", "##a", "##b", "##c", "1", "2", "##1", "##2", "i", "can"),
    *(
        "t",
        "gp",
        "##t",
        "σ",
        "##σ",
        "##ς",
        "ᄒ",
        "##ᅡ",
        "##ᆫ",
        "e",
        "##e",
        "😀",
        "##😀",
        "👨",
        "##👩",
        "か",
        "##な",
        "##。",
    ),
]
SMALL = WordPiece(TOKENS, start=None, end=None)
CASED = WordPiece(TOKENS, lowercase=False, start=None, end=None)
EXACT = WordPiece(TOKENS, start=None, end=None, pre_tokenize=lambda text: [" " + text])
EXACT_CASED = WordPiece(TOKENS, lowercase=False, start=None, end=None, pre_tokenize=lambda text: [" " + text])
# Hangul, combining marks, joined emoji, controls, sigma, private and unassigned characters, next to plain ones.
ODD = (
    "한국é\u0301\u0323\u302e\u1dfaİΣσςßÅ①\u212b豈\u2329🏽👨\u200d👩😀\0\x85\ufffd\u2028\u2029\u00ad\u3000\ue000\u0378"
    "\U000e0001“”…—\r\n\t"
)
texts = st.text(
    st.one_of(
        st.sampled_from("".join(token for token in TOKENS if len(token) == 1)),
        st.sampled_from(ODD),
        st.characters(exclude_categories=["Cs"]),
    )
)


@pytest.fixture(scope="module")
def chinese(shared):
    return shared / "vocab" / "bert-base-chinese-vocab.txt"


def golden(name):
    return next(config for config in GOLDEN["configs"] if config["name"] == name)["results"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("default", {"lowercase": False}),
        ("lower", {}),
        ("gpt2_ml", {"start": None, "end": None}),
        ("no_start", {"lowercase": False, "start": None}),
        ("no_end", {"lowercase": False, "end": None}),
        ("pre_simple", {"lowercase": False, "pre_tokenize": lambda t: re.findall(r"[A-Za-z0-9]+|\[MASK\]|\s+|.", t)}),
        ("pre_simple_lower", {"pre_tokenize": lambda t: re.findall(r"[A-Za-z0-9]+|\[MASK\]|\s+|.", t)}),
        ("word_maxlen_10", {"word_limit": 10}),
    ],
)
def test_ids_equal_bert4keras(name, options, chinese):
    tokenizer = WordPiece(chinese, **options)
    results = golden(name)
    assert len(results) == len(GOLDEN["texts"]) == 69
    for text, wanted in zip(GOLDEN["texts"], results, strict=True):
        assert tokenizer.encode(text).ids == wanted["ids"], text
        assert tokenizer.encode(text, detail=True).ids == wanted["ids"], text


def test_clue_s_ids_equal_the_original_s(shared):
    tokenizer = WordPiece(shared / "vocab" / "clue-vocab.txt", start=None, end=None)
    cases = GOLDEN["gpt2ml_fulltokenizer_clue"]
    assert len(cases) == 69
    assert [tokenizer.encode(text).ids for text in GOLDEN["texts"]] == [case["ids"] for case in cases]


@settings(deadline=None)
@given(texts)
def test_fast_ids_equal_exact_ids(text):
    assert SMALL.encode(text).ids == EXACT.encode(text).ids
    assert CASED.encode(text).ids == EXACT_CASED.encode(text).ids


@settings(deadline=None)
@given(texts)
def test_fast_and_detailed_ids_are_the_same(text):
    assert SMALL.encode(text).ids == SMALL.encode(text, detail=True).ids


@settings(deadline=None)
@given(texts)
def test_folding_by_table_equals_folding_the_whole(text):
    assert text_of(folded_codes(text)) == fold(text)


@pytest.mark.slow
def test_every_character_folds_as_alone():
    for first in range(0, 0x110000, 0x1000):
        codes = [code for code in range(first, first + 0x1000) if not 0xD800 <= code < 0xE000]
        for joint in ("", "x"):
            text = joint.join(map(chr, codes))
            assert text_of(folded_codes(text)) == fold(text), hex(first)


@settings(deadline=None)
@given(texts)
def test_offsets_slice_the_text(text):
    encoding = SMALL.encode(text, detail=True)
    at = 0
    for number, token, (start, stop) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
        assert at <= stop <= len(text) and start < stop
        assert token == SMALL.id_to_token(number)
        if token != "[UNK]":
            kept = [c for c in fold(text[start:stop]) if not re.match(r"[\0\ufffd]", c)]
            assert set(token.removeprefix("##")) <= set(kept)
        at = start


def test_offsets_point_into_the_text_before_it_was_folded():
    text = "Hello\u200dWorld 한 E\u0301a"
    encoding = SMALL.encode(text, detail=True)
    assert [text[start:stop] for start, stop in encoding.offsets] == ["Hello\u200dWorld", "한", "한", "한", "E", "a"]
    assert SMALL.encode("hello", "我", detail=True).offsets == [(0, 5), (0, 1)]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TOKENS) - 1)), st.booleans())
def test_streamed_pieces_joined_are_the_whole(ids, special):
    for tokenizer in (SMALL, CASED):
        stream = tokenizer.stream(special=special)
        pieces = [stream.push(number) for number in ids]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, special=special)
        assert tokenizer.decode(ids[: len(ids) // 2], special=special) == "".join(pieces[: len(ids) // 2])


@settings(deadline=None)
@given(texts)
def test_decoded_text_has_the_same_ids_again(text):
    unknown = SMALL.special.unk
    ids = [number for number in SMALL.encode(text).ids if number != unknown]
    if unknown not in SMALL.encode(text).ids:
        assert SMALL.encode(SMALL.decode(ids)).ids == ids


@pytest.mark.parametrize(
    "text",
    [
        "我爱北京天安门。",
        "hello world",
        "hello, world! can i play?",
        "我can不错world 1.2。",
        "1,2 1:2 a.b.c",
        "i can't",
        "北京(a b)-hello_world",
    ],
)
def test_chinese_is_decoded_without_stray_spaces(text):
    assert SMALL.decode(SMALL.encode(text).ids) == text


def test_special_tokens_are_read_and_written_when_asked():
    text = "我[MASK]爱[unused1]"
    plain = SMALL.encode(text, detail=True)
    assert plain.tokens == ["我", "[", "[UNK]", "]", "爱", "[", "[UNK]", "]"]
    whole = SMALL.encode(text, special=True, detail=True)
    assert whole.tokens == ["我", "[MASK]", "爱", "[unused1]"]
    assert [text[start:stop] for start, stop in whole.offsets] == whole.tokens
    assert whole.ids == SMALL.encode(text, special=True).ids
    assert SMALL.decode(whole.ids) == "我爱"
    assert SMALL.decode(whole.ids, special=True) == text


def test_pairs_have_segments_and_lose_the_longer_text_first():
    tokenizer = WordPiece(TOKENS)
    decode = lambda encoding: "".join(tokenizer.id_to_token(number) for number in encoding.ids)  # noqa: E731
    whole = tokenizer.encode("我爱北京", "不错")
    assert decode(whole) == "[CLS]我爱北京[SEP]不错[SEP]"
    assert whole.segments == [0] * 6 + [1] * 3
    assert len(whole) == 9
    assert decode(tokenizer.encode("我爱北京", "不错", limit=7)) == "[CLS]我爱[SEP]不错[SEP]"
    assert decode(tokenizer.encode("我爱北京", "不错", limit=6)) == "[CLS]我[SEP]不错[SEP]"
    assert decode(tokenizer.encode("我爱北京", "不错", limit=6, cut="left")) == "[CLS]京[SEP]不错[SEP]"
    assert decode(tokenizer.encode("我爱", "不错今天", limit=8)) == "[CLS]我爱[SEP]不错今[SEP]"
    assert decode(tokenizer.encode("我爱北京", limit=4, cut="left")) == "[CLS]北京[SEP]"
    assert tokenizer.encode("我爱", ends=False).ids == tokenizer.encode("我爱").ids[1:-1]
    cut = tokenizer.encode("我爱北京", limit=4, cut="left", detail=True)
    assert (cut.offsets, cut.tokens) == ([(0, 0), (2, 3), (3, 4), (0, 0)], ["[CLS]", "北", "京", "[SEP]"])
    assert tokenizer.encode("我爱", limit=2).ids == tokenizer.encode("").ids
    assert tokenizer.ends and not SMALL.ends


@settings(deadline=None)
@given(st.text("我爱a "), st.text("我爱a "), st.integers(3, 12), st.sampled_from(["right", "left"]))
def test_truncation_takes_one_token_at_a_time_from_the_longer(first, second, limit, cut):
    tokenizer = WordPiece(TOKENS)
    parts = [tokenizer.encode(text, ends=False).ids for text in (first, second)]
    while sum(map(len, parts)) > limit - 3:
        longest = max(parts, key=len)
        longest.pop(-1 if cut == "right" else 0)
    start, end = tokenizer.special.start, tokenizer.special.end
    encoding = tokenizer.encode(first, second, limit=limit, cut=cut)
    assert encoding.ids == [start, *parts[0], end, *parts[1], end]


def test_batches_are_the_same_as_one_by_one():
    tokenizer = WordPiece(TOKENS)
    assert tokenizer.encode_batch(["我爱", ("北京", "不错"), ""], limit=5) == [
        tokenizer.encode("我爱", limit=5),
        tokenizer.encode("北京", "不错", limit=5),
        Encoding([2, 3], 2),
    ]


def test_a_word_beyond_the_limit_is_one_unknown():
    tokenizer = WordPiece(TOKENS, start=None, end=None, word_limit=4)
    assert tokenizer.encode("aaaa").ids == [TOKENS.index("a"), *[TOKENS.index("##a")] * 3]
    assert tokenizer.encode("aaaaa").ids == [1]
    assert tokenizer.encode("hello").ids == [TOKENS.index("hello")]  # whole words need no cutting


def test_long_and_many_words_are_not_kept_forever(monkeypatch):
    monkeypatch.setattr("hanmo.tokenizers.codes._CACHED_WORDS", 2)
    tokenizer = WordPiece(TOKENS, start=None, end=None)
    for text in ("a b c aa", "a b", "a" * 100):
        assert tokenizer.encode(text).ids == EXACT.encode(text).ids
    assert len(tokenizer._splitter._words) <= 2


def test_it_is_what_the_protocol_says():
    assert isinstance(SMALL, Tokenizer)
    assert SMALL.vocab_size == len(TOKENS) == len(SMALL.tokens)
    assert (SMALL.token_to_id("我"), SMALL.token_to_id("nothing")) == (6, None)
    special = WordPiece(TOKENS).special
    assert (special.pad, special.unk, special.start, special.end, special.mask) == (0, 1, 2, 3, 4)
    assert (SMALL.special.start, SMALL.special.end) == (None, None)


@pytest.mark.parametrize("text", ["\ud800", "我\udfff爱"])
def test_lone_surrogates_are_refused(text):
    for detail in (False, True):
        with pytest.raises(PromptError, match=r"lone surrogate U\+D[8F][0F][0F] at position [01]"):
            SMALL.encode(text, detail=detail)


@settings(deadline=None, max_examples=20)
@given(st.text(st.characters(categories=["Cs", "Lo"])))
def test_surrogates_never_crash_otherwise(text):
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        with pytest.raises(PromptError, match="lone surrogate"):
            SMALL.encode(text)
    else:
        assert SMALL.encode(text).ids == EXACT.encode(text).ids


def test_errors_name_the_value(tmp_path):
    with pytest.raises(PromptError, match="the text is bytes; expected str"):
        SMALL.encode(b"abc")
    with pytest.raises(PromptError, match="limit=1 leaves no room for the 2 start and end marks"):
        WordPiece(TOKENS).encode("我", limit=1)
    with pytest.raises(PromptError, match="cut='middle' is no side"):
        SMALL.encode("我", limit=1, cut="middle")
    for bad in (-1, len(TOKENS)):
        with pytest.raises(TokenizerError, match=f"the id {bad} is outside the vocabulary of {len(TOKENS)} tokens"):
            SMALL.decode([bad])
        with pytest.raises(TokenizerError, match=f"the id {bad} is outside"):
            SMALL.id_to_token(bad)
    with pytest.raises(TokenizerError, match=r"the vocabulary of 1 tokens has no '\[UNK\]'"):
        WordPiece(["a"])
    with pytest.raises(TokenizerError, match="has no '<s>'"):
        WordPiece(TOKENS, start="<s>")
    with pytest.raises(MissingFile, match=r"nothing\.txt"):
        WordPiece(tmp_path / "nothing.txt")
    with pytest.raises(TokenizerError, match="'hello' is not in the text after position 0"):
        WordPiece(TOKENS, pre_tokenize=lambda text: ["hello"]).encode("world", detail=True)
