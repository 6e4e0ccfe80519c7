"""The fast path of splitting: a text as an array of code points, with one table look-up per character.

It gives the same ids as bert_rules.py, by test. Hugging Face `tokenizers` is used for single words only: its normalizer
follows another version of Unicode, and a string and an offset per token take more than ten times as long.
"""

import unicodedata
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hanmo.tokenizers.bert_rules import DROP, WORD, fold

_CONTEXT = WORD - 1  # folds to several characters, or depends on its neighbours
_UNSEEN = WORD - 2  # not classified yet; the lowest of all
_POINTS = 0x110000
_CACHED_WORDS = 500_000  # the cache is emptied beyond this, which bounds memory
_LONGEST = 64  # longer words, in characters, are not cached


def codes_of(text: str) -> NDArray[np.int32]:
    """Return the code points of text, [characters]; lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32)


def text_of(codes: NDArray[np.int32]) -> str:
    """Return the text of code points."""
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


def folded_codes(text: str) -> NDArray[np.int32]:
    """Return the code points of fold(text), [characters]."""
    codes = codes_of(text)
    folded = _FOLDS.look_up(codes)
    if len(folded) and folded.min() < 0:
        if (folded == _CONTEXT).any():
            return codes_of(fold(text))
        folded = folded[folded != DROP]
    return folded


class _Table:
    """One int32 per code point, filled on demand: 4 MB, of which untouched pages take no memory."""

    def __init__(self, classify: Callable[[str], int]) -> None:
        self._classify = classify
        self._values = np.zeros(_POINTS, np.int32)  # stored minus _UNSEEN, so that 0 means unseen

    def look_up(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        values = self._values[codes]
        if len(values) and values.min() == 0:
            for code in np.unique(codes[values == 0]).tolist():
                self._values[code] = self._classify(chr(code)) - _UNSEEN
            values = self._values[codes]
        values += _UNSEEN
        return values


class CodeSplitter:
    """Splits texts by a table from characters to ids.

    classify: character → its id if it is a token by itself, else DROP, SPACE or WORD; called once per character.
    pieces: word → its ids; called once per word.   vocab_size: number of ids.
    classes: code points [characters] → the id or class of each, [characters].
    """

    def __init__(self, classify: Callable[[str], int], pieces: Callable[[str], list[int]], vocab_size: int) -> None:
        self._numbers = np.array(range(vocab_size), object)  # existing ints are faster than new ones
        self.classes = _Table(classify).look_up
        self._pieces = pieces
        self._words: dict[str, list[int]] = {}

    def ids(self, codes: NDArray[np.int32], classes: NDArray[np.int32]) -> list[int]:
        """Return the ids of a text from its code points and their classes, both [characters]."""
        ids: list[int] = self._numbers.take(self.array(codes, classes)).tolist()
        return ids

    def array(self, codes: NDArray[np.int32], classes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the same ids as an array, [tokens]."""
        lowest = classes.min(initial=0)
        if lowest == 0:
            return classes
        if lowest > WORD:
            return classes[classes >= 0]
        dropped = classes == DROP
        if dropped.any():  # first, because its neighbours may join to one word
            codes, classes = codes[~dropped], classes[~dropped]
        word = classes == WORD
        inside = np.flatnonzero(word[1:] != word[:-1]) + 1  # faster than np.diff for short texts
        edges = np.concatenate(([0] if word[0] else [], inside, [len(word)] if word[-1] else [])).astype(np.intp)
        starts = edges[::2]
        text = text_of(codes)
        found = [
            self._of_word(text[start:stop]) for start, stop in zip(starts.tolist(), edges[1::2].tolist(), strict=True)
        ]
        classes = classes.copy()
        classes[starts] = [ids[0] for ids in found]  # the rest of a word stays negative and is removed
        kept = classes >= 0
        result = classes[kept]
        more = [len(ids) - 1 for ids in found]
        if any(more):
            behind = np.repeat(np.cumsum(kept)[starts], more)  # where the other pieces of a word go
            result = np.insert(result, behind, [number for ids in found for number in ids[1:]])
        return result

    def _of_word(self, word: str) -> list[int]:
        known = self._words.get(word)
        if known is None:
            known = self._pieces(word)
            if len(word) <= _LONGEST:
                if len(self._words) >= _CACHED_WORDS:
                    self._words.clear()
                self._words[word] = known
        return known


def _classify_fold(character: str) -> int:
    folded = fold(character)
    if not folded:
        return DROP
    # A capital sigma folds by its position in the word; marks other than Mn may change places under NFD.
    if len(folded) > 1 or character == "Σ" or unicodedata.combining(folded):
        return _CONTEXT
    return ord(folded)


_FOLDS = _Table(_classify_fold)
