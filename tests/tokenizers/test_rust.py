"""Tokenizers written as a tokenizer.json: the same ids and the same decoded text."""

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken

import hanmo
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.tokenizers.lossless import Lossless
from hanmo.tokenizers.rust import rust_tokenizer
from hanmo.tokenizers.wordpiece import WordPiece

SMALL = Path(hanmo.__file__).parent / "assets" / "small" / "vocab.txt"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"今天气好，。,.;!?:'“”-3aeiou",
    "hello",
    "world",
    "##s",
    "##ly",
    "Z",
    *("今", "今", "##s", "##ly"),  # repeated
]
ADDED = {
    len(WORDS) + at: AddedToken(content, normalized=True) for at, content in enumerate(["<n>", "New", "气N.w", "B #x"])
}
CONFIG = gpt2_ml_config(vocab_size=8000, num_layers=1, hidden_size=64, positions=32)


@pytest.mark.parametrize(
    "tokenizer",
    [WordPiece(WORDS), WordPiece(WORDS, lowercase=False), WordPiece(WORDS, added=ADDED), Lossless(SMALL)],
    ids=["folds", "cased", "added", "lossless"],
)
def test_ids_and_decoded_texts_are_the_same(tokenizer: WordPiece | Lossless) -> None:
    made, draw = rust_tokenizer(CONFIG, tokenizer), random.Random(0)
    parts = [
        "今天",
        "气",
        "好",
        "hello",
        "World",
        "hellos",
        "a",
        "Z",
        "é",
        "３",
        "3",
        "한",
        "ー",
        "😀",
        "[MASK",
        "<n>",
        "NEW",
        "气n.W",
        "b #x",
    ]
    parts += [*" \n\t，,!'“-", "  ", ". ", "\r\n", "\u3000", "\u200b", "\x07"]
    for _ in range(500):
        text = "".join(draw.choice(parts) for _ in range(draw.randrange(1, 12)))
        ids = tokenizer.encode(text, ends=False).ids
        assert made.encode(text, add_special_tokens=False).ids == ids, text
        assert made.decode(ids) == tokenizer.decode(ids), text


def test_repeated_and_added_tokens_are_decoded_as_they_are_written() -> None:
    tokenizer = WordPiece(WORDS, added=ADDED)
    made = rust_tokenizer(CONFIG, tokenizer)
    texts = [made.decode([number]) for number in range(tokenizer.vocab_size)]
    assert texts == [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
    assert texts.count("今") == 3 and texts[-3:] == ["New", "气N.w", "B #x"]
