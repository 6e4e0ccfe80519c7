import pickle
import string
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.errors import MissingFile, TokenizerError
from hanmo.train.encoding import CharacterEncoder

ALPHABET = string.ascii_letters + string.digits
TOKENS = [
    *("[PAD]", "[UNK]", "[EOS]", "[NL]", "[SP]"),
    *ALPHABET,
    *("##" + letter for letter in ALPHABET),
    *"如果天地玄黄，。“”…—（）_.-é",
    *("the", "Py", "14", "##thon", "##ing", "##in"),
]
ENCODER = CharacterEncoder(TOKENS)


def tokens(text: str) -> list[str]:
    return [TOKENS[number] for number in ENCODER.encode(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("如果 Python 3.14，\n", ["如", "果", "[SP]", "Py", "##thon", "3", ".", "14", "，", "[NL]"]),
        ("the thing", ["the", "t", "##h", "##ing"]),
        ("a  b", ["a", "[SP]", "[SP]", "b"]),
        (" a ", ["[SP]", "a", "[SP]"]),
        ("a 天", ["a", "[SP]", "天"]),
        ("天地\n\n玄黄", ["天", "地", "[NL]", "[NL]", "玄", "黄"]),
        ("“…”", ["“", "…", "”"]),
        ("caféa", ["c", "##a", "##f", "é", "a"]),
        ("天鱻a", ["天", "[UNK]", "a"]),
        ("[EOS]", ["[UNK]", "E", "##O", "##S", "[UNK]"]),
        ("", []),
        ("A", ["A"]),
    ],
)
def test_text_becomes_these_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text(alphabet="ab19Z天地，。“”…_.\n ", max_size=40))
def test_decoding_gives_every_text_of_known_characters_back(text: str) -> None:
    ids = ENCODER.encode(text)
    assert ids.dtype == np.uint16
    assert ENCODER.decode(ids) == text


@given(st.text(max_size=30), st.text(max_size=30))
def test_text_before_a_newline_is_encoded_alike_whatever_follows(first: str, second: str) -> None:
    whole = ENCODER.encode(first + "\n" + second)
    assert whole[: len(ENCODER.encode(first + "\n"))].tolist() == ENCODER.encode(first + "\n").tolist()


@given(st.text(max_size=60))
def test_any_unicode_is_encoded_with_ids_of_the_vocabulary(text: str) -> None:
    ids = ENCODER.encode(text)
    assert not len(ids) or (ids.min() > 0 and ids.max() < len(TOKENS))


@pytest.mark.parametrize(
    ("text", "same"),
    [("a\r\nb\rc", "a\nb\nc"), ("天\u3000地\t。", "天 地 。"), ("天\u200b\ufeff地\x00", "天地"), ("a\u200bb", "ab")],
)
def test_line_ends_spaces_and_control_characters_are_made_plain(text: str, same: str) -> None:
    assert ENCODER.decode(ENCODER.encode(text)) == same


def test_every_unknown_character_is_one_unknown_token() -> None:
    text = "鱻龘a鱻"
    assert (ENCODER.encode(text) == ENCODER.unknown).sum() == 3
    assert ENCODER.outside(text) == {"鱻", "龘"}
    assert ENCODER.outside("天地") == set()


def test_a_very_long_word_is_encoded_whole() -> None:
    assert ENCODER.decode(ENCODER.encode("ab" * 100_000)) == "ab" * 100_000


def test_the_end_mark_is_not_shown() -> None:
    assert ENCODER.decode([*ENCODER.encode("天地"), ENCODER.end, 0]) == "天地"


def test_a_pickled_encoder_encodes_the_same() -> None:
    again = pickle.loads(pickle.dumps(ENCODER))
    assert again.encode("如果 the").tolist() == ENCODER.encode("如果 the").tolist()


def test_a_vocabulary_file_is_split_at_newlines_only_and_has_its_digest(tmp_path) -> None:
    content = "".join(token + "\n" for token in [*TOKENS, "\u2028"])
    (tmp_path / "vocab.txt").write_bytes(content.encode())
    encoder = CharacterEncoder.from_file(tmp_path / "vocab.txt")
    assert encoder.tokens == [*TOKENS, "\u2028"]
    assert encoder.sha256 == sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TOKENS[1:], r"id 0 is '\[UNK\]', expected '\[PAD\]'"),
        ([token for token in TOKENS if token not in ("[NL]", "##q")], r"lacks 2 tokens .*'\[NL\]', '##q'"),
        ([*TOKENS, "天"], "holds '天' twice"),
    ],
)
def test_a_vocabulary_that_cannot_serve_is_refused(broken: list[str], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        CharacterEncoder(broken)


def test_a_missing_vocabulary_is_named(tmp_path) -> None:
    with pytest.raises(MissingFile, match=r"nothing\.txt is not there"):
        CharacterEncoder.from_file(tmp_path / "nothing.txt")


def test_a_vocabulary_in_another_encoding_is_refused(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_bytes("[PAD]\n天".encode("gb18030"))
    with pytest.raises(TokenizerError, match=r"vocab\.txt is not UTF-8 at byte 6"):
        CharacterEncoder.from_file(tmp_path / "vocab.txt")
