"""BERT's splitting of text into words and words into pieces, step by step and for any vocabulary.

Knows the rules in their plainest form; every option and every odd character takes this path, and the fast path of
wordpiece.py is tested against it. Knows no files, no ids and no special tokens.
"""

from collections.abc import Callable, Container, Iterable, Sequence

from hanmo.errors import TokenizerError
from hanmo.tokenizers.characters import Kind, fold, kind

__all__ = ["PreTokenize", "match", "split_text", "split_word", "split_words"]

PreTokenize = Callable[[str], Iterable[str]]


class _Spacing(dict[int, str | None]):
    """A table for str.translate that learns each character when it first meets it."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        spaced = {Kind.ALONE: f" {character} ", Kind.SPACE: " ", Kind.DROP: None, Kind.WORD: character}
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
    """Return the pieces of text; a word that the vocabulary cannot spell stays whole and raw.

    pre_tokenize: cuts the text (already folded where lowercase) first; what it yields is taken whole if the vocabulary
    has it, and is split as any text if not.
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
    return [piece for word in split_words(text) for piece in split_word(word, vocabulary, word_limit)]


def split_words(text: str) -> list[str]:
    """Return the words of text: ideographs and punctuation stand alone, controls are dropped."""
    return text.translate(_SPACING).split()


def split_word(word: str, vocabulary: Container[str], word_limit: int) -> list[str]:
    """Return the pieces of a word, longest first, '##' before all but the first; [word] if that fails.

    word_limit: a word of more characters is not tried.
    """
    if len(word) > word_limit or word in vocabulary:
        return [word]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        for stop in range(len(word), start, -1):
            piece = word[start:stop] if start == 0 else "##" + word[start:stop]
            if piece in vocabulary:
                pieces.append(piece)
                start = stop
                break
        else:
            return [word]
    return pieces


def match(text: str, pieces: Sequence[str], *, lowercase: bool) -> list[tuple[int, int]]:
    """Find where in text each piece comes from: (start, stop) per piece, in code points of text.

    pieces: raw, as split_text returns them.
    Raises TokenizerError if a piece is not in the text, as when pre_tokenize changes characters.
    """
    folded, sources = _sources(text, lowercase)
    spans: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        stem = piece.removeprefix("##")
        start = folded.find(stem, at)
        if start < 0:
            start, stem = folded.find(piece, at), piece  # a pre_tokenize may yield '##' as plain characters
        if start < 0:
            raise TokenizerError(
                f"the token {piece!r} is not in the text after position {at}; offsets need a pre_tokenize "
                "that only cuts the text and does not change it"
            )
        at = start + len(stem)
        spans.append((sources[start], sources[at - 1] + 1) if stem else (sources[start], sources[start]))
    return spans


def _sources(text: str, lowercase: bool) -> tuple[str, list[int]]:
    kept: list[str] = []
    sources: list[int] = []
    for position, character in enumerate(text):
        for folded in fold(character) if lowercase else character:
            if kind(folded) is not Kind.DROP:
                kept.append(folded)
                sources.append(position)
    # A final sigma, or marks that change places, need the whole text; the count of characters is the same.
    whole = fold(text) if lowercase else text
    return "".join(character for character in whole if kind(character) is not Kind.DROP), [*sources, len(text)]
