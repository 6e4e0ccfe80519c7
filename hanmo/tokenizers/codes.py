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

DROP, SPACE, WORD = -1, -2, -3  # judgements of a character that is no token by itself; WORD is the lowest
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
    vocab_size: how many ids there are.
    """

    def __init__(self, judge: Callable[[str], int], pieces: Callable[[str], list[int]], vocab_size: int) -> None:
        self._numbers = np.array(range(vocab_size), object)  # kept ints are faster than new ones
        self._table = _Table(judge)
        self._pieces = pieces
        self._words: dict[str, list[int]] = {}

    def judged(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the judgement of every code point, [characters]."""
        return self._table.look_up(codes)

    def ids(self, codes: NDArray[np.int32], judged: NDArray[np.int32]) -> list[int]:
        """Return the ids of a text from its code points and their judgements, both [characters]."""
        ids: list[int] = self._numbers.take(self.array(codes, judged)).tolist()
        return ids

    def array(self, codes: NDArray[np.int32], judged: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the same ids as an array, [tokens]."""
        lowest = judged.min(initial=0)
        if lowest == 0:
            return judged
        if lowest > WORD:
            return judged[judged >= 0]
        dropped = judged == DROP
        if dropped.any():  # first, because the characters around it may join to one word
            codes, judged = codes[~dropped], judged[~dropped]
        word = judged == WORD
        edges = _edges(word)
        starts = edges[::2]
        text = text_of(codes)
        found = [
            self._of_word(text[start:stop]) for start, stop in zip(starts.tolist(), edges[1::2].tolist(), strict=True)
        ]
        judged = judged.copy()
        judged[starts] = [ids[0] for ids in found]  # the rest of a word stays negative and goes
        kept = judged >= 0
        result = judged[kept]
        more = [len(ids) - 1 for ids in found]
        if any(more):
            behind = np.repeat(np.cumsum(kept)[starts], more)  # where further pieces of a word belong
            result = np.insert(result, behind, [number for ids in found for number in ids[1:]])
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


def _edges(word: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return where each run of True starts and stops, by turns; np.diff does it too, but slowly for short texts."""
    inside = np.flatnonzero(word[1:] != word[:-1]) + 1
    return np.concatenate(([0] if word[0] else [], inside, [len(word)] if word[-1] else [])).astype(np.intp)


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
        values += _UNSEEN
        return values

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
