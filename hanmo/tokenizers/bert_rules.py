"""BERT's rules for splitting text into words and words into pieces, one step at a time and for any vocabulary.

Every option and every unusual character is handled here; the fast path in codes.py is tested against this module.
Characters are classified by the Unicode tables of the running Python. No files, no ids, no special tokens.
"""

import re
import sys
import unicodedata
from collections.abc import Callable, Container, Iterable, Sequence

from hanmo.errors import TokenizerError

PreTokenize = Callable[[str], Iterable[str]]

# What a character is for the words around it: a word by itself, removed (its neighbours join), a separator, or part of
# a word. codes.py stores these beside ids, so all but SINGLE are negative and WORD is the lowest.
SINGLE, DROP, SPACE, WORD = 0, -1, -2, -3

# CJK Unified Ideographs, extensions A to E, compatibility ideographs and their supplement
_CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)
_ASCII_MARKS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")  # BERT includes $ + < = > ^ ` | ~


def kind(character: str) -> int:
    """Return SINGLE, DROP, SPACE or WORD."""
    if is_punctuation(character) or is_chinese(character):
        return SINGLE
    if is_space(character):
        return SPACE
    if character in "\0\ufffd" or is_control(character):
        return DROP
    return SPACE if character.isspace() else WORD  # U+2028 and U+2029 separate words though they are not Zs


def fold(text: str) -> str:
    """Return text in lower case, decomposed (NFD) and without its nonspacing marks: 'É' → 'e', '한' → three jamo."""
    return "".join(
        character for character in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(character) != "Mn"
    )


def is_chinese(character: str) -> bool:
    """Tell whether a character is an ideograph; kana, hangul and Chinese punctuation are not."""
    return _CHINESE.match(character) is not None


def is_punctuation(character: str) -> bool:
    """Tell whether a character is an ASCII mark or in a Unicode category P*."""
    return character in _ASCII_MARKS or unicodedata.category(character).startswith("P")


def is_space(character: str) -> bool:
    """Tell whether a character is a space, tab, line end or in the category Zs."""
    return character in " \n\r\t" or unicodedata.category(character) == "Zs"


def is_control(character: str) -> bool:
    """Tell whether a character is in the categories Cc and Cf, as zero-width joiners are."""
    return unicodedata.category(character) in ("Cc", "Cf")


def in_word(character: str) -> bool:
    """Tell whether a character of a token is part of a word that spaces separate from the next."""
    return not (is_chinese(character) or is_punctuation(character) or character.isspace())


class _Spacing(dict[int, str | None]):
    """A table for str.translate that is filled on demand."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        spaced = {SINGLE: f" {character} ", SPACE: " ", DROP: None, WORD: character}
        self[code] = spaced[kind(character)]
        return self[code]


_SPACING = _Spacing()


def split_text(
    text: str,
    vocabulary: Container[str],
    *,
    lowercase: bool,
    word_limit: int,
    pre_tokenize: PreTokenize | None = None,
) -> list[str]:
    """Return the pieces of text; a word that the vocabulary cannot spell is returned unsplit.

    pre_tokenize: splits the text (folded first if lowercase); its parts are kept unsplit if the vocabulary has them
    and are split as any other text if not.
    """
    if lowercase:
        text = fold(text)
    if pre_tokenize is not None:
        pieces: list[str] = []
        for part in pre_tokenize(text):
            if part in vocabulary:
                pieces.append(part)
            else:
                pieces += split_text(part, vocabulary, lowercase=lowercase, word_limit=word_limit)
        return pieces
    return [piece for word in text.translate(_SPACING).split() for piece in split_word(word, vocabulary, word_limit)]


def split_word(word: str, vocabulary: Container[str], word_limit: int, *, longest: int = sys.maxsize) -> list[str]:
    """Return the pieces of a word, longest match first, '##' before all but the first; [word] if that fails.

    word_limit: longer words, in characters, are not split.   longest: maximum length of a piece.
    """
    if len(word) > word_limit or word in vocabulary:
        return [word]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        for stop in range(min(len(word), start + longest), start, -1):
            piece = word[start:stop] if start == 0 else "##" + word[start:stop]
            if piece in vocabulary:
                pieces.append(piece)
                start = stop
                break
        else:
            return [word]
    return pieces


def match(text: str, pieces: Sequence[str], *, lowercase: bool) -> list[tuple[int, int]]:
    """Find the source of each piece in text: (start, stop) in code points.

    pieces: as split_text returns them.
    Raises TokenizerError if a piece is not in the text, as when pre_tokenize changes characters.
    """
    sources: list[int] = []  # the position in text of each character of folded
    for position, character in enumerate(text):
        sources += [position for each in (fold(character) if lowercase else character) if kind(each) != DROP]
    sources.append(len(text))
    # A final sigma, or marks that change places, need the full text; the number of characters is the same.
    folded = "".join(character for character in (fold(text) if lowercase else text) if kind(character) != DROP)
    spans: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        stem = piece.removeprefix("##")
        start = folded.find(stem, at)
        if start < 0:
            start, stem = folded.find(piece, at), piece  # pre_tokenize may return '##' as plain characters
        if start < 0:
            raise TokenizerError(
                f"the token {piece!r} is not in the text after position {at}; offsets need a pre_tokenize "
                "that only splits the text and does not change it"
            )
        at = start + len(stem)
        spans.append((sources[start], sources[at - 1] + 1) if stem else (sources[start], sources[start]))
    return spans
