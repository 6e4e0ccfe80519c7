"""Which characters BERT parts words at, which it drops, and how it folds case and accents.

Knows Unicode, by the tables of the running Python, and Google's BERT rules. Knows no vocabulary.
"""

import unicodedata
from enum import Enum

__all__ = ["Kind", "fold", "is_chinese", "is_control", "is_punctuation", "is_space", "kind"]

_CHINESE = (  # CJK Unified Ideographs, extensions A to E, compatibility ideographs and their supplement
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_ASCII_MARKS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")  # BERT counts $ + < = > ^ ` | ~ in


class Kind(Enum):
    """What a character does to the words around it."""

    ALONE = "alone"  # is a word by itself
    SPACE = "space"  # parts words and is gone
    DROP = "drop"  # is gone, and the characters around it join
    WORD = "word"  # is part of a word


def kind(character: str) -> Kind:
    """Say what a character does to the words around it."""
    if is_punctuation(character) or is_chinese(character):
        return Kind.ALONE
    if is_space(character):
        return Kind.SPACE
    if character in "\0\ufffd" or is_control(character):
        return Kind.DROP
    return Kind.SPACE if character.isspace() else Kind.WORD  # U+2028 and U+2029 part words though they are no Zs


def fold(text: str) -> str:
    """Return text in lower case, decomposed (NFD) and without its nonspacing marks: 'É' → 'e', '한' → three jamo."""
    return "".join(
        character for character in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(character) != "Mn"
    )


def is_chinese(character: str) -> bool:
    """Say whether a character is an ideograph; kana, hangul and Chinese punctuation are not."""
    code = ord(character)
    return any(first <= code <= last for first, last in _CHINESE)


def is_punctuation(character: str) -> bool:
    """Say whether a character is an ASCII mark or of a Unicode class P."""
    return character in _ASCII_MARKS or unicodedata.category(character).startswith("P")


def is_space(character: str) -> bool:
    """Say whether a character is a space, tab, line end or of the class Zs."""
    return character in " \n\r\t" or unicodedata.category(character) == "Zs"


def is_control(character: str) -> bool:
    """Say whether a character is of the classes Cc and Cf; zero-width joiners are."""
    return unicodedata.category(character) in ("Cc", "Cf")
