"""The fast path of splitting: a text as an array of code points, judged by one table look-up each.

Knows arrays of characters and runs of them. What a character means, and the pieces of a word, it is told.
It gives the ids of exact.py; the tests hold the two against each other. Hugging Face `tokenizers` is not used for whole
texts: its normalizer follows another version of Unicode, and it keeps a string and an offset for every token, which
takes more than ten times as long. Single words are handed to it.
"""

import unicodedata
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hanmo.tokenizers.characters import fold

__all__ = ["DROP", "SPACE", "WORD", "CodeSplitter", "codes_of", "folded_codes", "text_of"]

DROP, SPACE, WORD = -1, -2, -3  # judgements of a character that is no token by itself
_WHOLE = -4  # folds to several characters, or depends on its neighbours
_UNSEEN = -5  # not judged yet; the lowest of all
_POINTS = 0x110000
_REMEMBERED = 500_000  # words whose pieces are kept; beyond it the table starts anew, so that memory stays bounded
_LONGEST = 64  # characters of a word worth remembering


def codes_of(text: str) -> NDArray[np.int32]:
    """Return the code points of text, [characters]; lone surrogates are taken as they are."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32)


def text_of(codes: NDArray[np.int32]) -> str:
    """Return the text of code points."""
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


def folded_codes(text: str) -> NDArray[np.int32]:
    """Return the code points of fold(text), [characters]."""
    codes = codes_of(text)
    folded = _FOLDS.look_up(codes)
    if len(folded) and folded.min() < 0:
        if (folded == _WHOLE).any():
            return codes_of(fold(text))
        folded = folded[folded != DROP]
    return folded


class CodeSplitter:
    """Ids of texts by a table of judgements.

    judge: character → its id where it is a token by itself, else DROP, SPACE or WORD; asked once a character.
    pieces: a whole word → its ids; asked once a word.
    """

    def __init__(self, judge: Callable[[str], int], pieces: Callable[[str], list[int]]) -> None:
        self._table = _Table(judge)
        self._pieces = pieces
        self._words: dict[str, list[int]] = {}

    def judged(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the judgement of every code point, [characters]."""
        return self._table.look_up(codes)

    def ids(self, codes: NDArray[np.int32], judged: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the ids of a text, [tokens], from its code points and their judgements, both [characters]."""
        if not len(judged) or judged.min() >= 0:
            return judged
        dropped = judged == DROP
        if dropped.any():  # first, because the characters around it may join to one word
            codes, judged = codes[~dropped], judged[~dropped]
        word = judged == WORD
        edges = np.flatnonzero(np.diff(word.view(np.int8), prepend=0, append=0))
        if not len(edges):
            return judged[judged >= 0]
        starts = edges[::2]
        text = text_of(codes)
        found = [
            self._of_word(text[start:stop]) for start, stop in zip(starts.tolist(), edges[1::2].tolist(), strict=True)
        ]
        counts = np.fromiter(map(len, found), np.int64, len(found))
        lengths = (judged >= 0).astype(np.int64)  # tokens of each character; all of a word's stand at its first
        lengths[starts] = counts
        stops = np.cumsum(lengths)
        result = np.empty(int(stops[-1]), np.int32)
        alone = judged >= 0
        result[stops[alone] - 1] = judged[alone]
        flat = np.fromiter((number for ids in found for number in ids), np.int32, int(counts.sum()))
        first = stops[starts] - counts
        before = np.cumsum(counts) - counts
        result[np.arange(len(flat)) + np.repeat(first - before, counts)] = flat
        return result

    def _of_word(self, word: str) -> list[int]:
        known = self._words.get(word)
        if known is None:
            known = self._pieces(word)
            if len(word) <= _LONGEST:
                if len(self._words) >= _REMEMBERED:
                    self._words.clear()
                self._words[word] = known
        return known


class _Table:
    """One int32 per code point, filled when a character is first met: 4 MB, of which untouched pages cost nothing."""

    def __init__(self, judge: Callable[[str], int]) -> None:
        self._judge = judge
        self._values = np.zeros(_POINTS, np.int32)  # stored less _UNSEEN, so that zero pages mean unseen

    def look_up(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        values = self._values[codes]
        if len(values) and values.min() == 0:
            for code in np.unique(codes[values == 0]).tolist():
                self._values[code] = self._stored(chr(code))
            values = self._values[codes]
        return values + _UNSEEN

    def _stored(self, character: str) -> int:
        return self._judge(character) - _UNSEEN


def _fold_judge(character: str) -> int:
    folded = fold(character)
    if not folded:
        return DROP
    # A capital sigma folds by its place in the word; marks that are no Mn may change places under NFD.
    if len(folded) > 1 or character == "Σ" or unicodedata.combining(folded):
        return _WHOLE
    return ord(folded)


_FOLDS = _Table(_fold_judge)
