"""Encode text to ids fast with a vocabulary in BERT's file format, losing nothing; decode it back.

Knows: characters, WordPiece inside runs of ASCII letters and digits, and the tokens that stand for newline, space
and the end of a document. Knows no files of data, no windows and no model.

    text       如 果   P y t h o n   3 . 1 4 ，↵
    tokens     如 果 [SP] Py ##thon 3 . 14 ， [NL]

A space is written [SP] unless it alone parts two words: there it is understood, because pieces of one word carry '##'.
"""

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import MissingFile, TokenizerError

__all__ = ["END", "NEWLINE", "PAD", "SPACE", "UNKNOWN", "CharacterEncoder"]

PAD, UNKNOWN, END, NEWLINE, SPACE = "[PAD]", "[UNK]", "[EOS]", "[NL]", "[SP]"
_WORD = re.compile("[A-Za-z0-9]+")
_REMEMBERED = 500_000  # words whose pieces are kept; beyond it the table starts anew, so that memory stays bounded


class CharacterEncoder:
    """Turn text into ids and back, by characters and, inside ASCII words, by WordPiece.

    tokens: the lines of a vocab.txt; it must hold [PAD] at id 0, [UNK], [EOS], [NL], [SP] and every ASCII letter and
    digit alone and with '##'. Then decode(encode(text)) == text for every text whose characters are in the vocabulary,
    but that line ends become newlines, other white space spaces, and control characters are dropped. A character
    outside the vocabulary is one [UNK]. No case is folded and nothing is normalised.
    Raises TokenizerError naming what the vocabulary lacks.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        _check(self.tokens, self._ids)
        self.pad, self.unknown = 0, self._ids[UNKNOWN]
        self.end, self.newline, self.space = self._ids[END], self._ids[NEWLINE], self._ids[SPACE]
        self.dtype = np.dtype(np.uint16 if len(self.tokens) <= 1 << 16 else np.uint32)
        self._longest = max(map(len, self.tokens))
        self._words: dict[str, list[int]] = {}
        self._table = _character_table(self._ids, self.newline, self.space, self.unknown)

    def __reduce__(self) -> tuple[type["CharacterEncoder"], tuple[list[str]]]:
        return CharacterEncoder, (self.tokens,)  # the 4 MB table is made again, not sent

    @classmethod
    def from_file(cls, path: str | Path) -> "CharacterEncoder":
        """Read a vocab.txt: UTF-8, one token a line, split at newlines only.

        Raises MissingFile, and TokenizerError if the file is not UTF-8 or lacks a token that is needed.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFile(f"{path} is not there; make a vocabulary first, or name another file")
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path} is not UTF-8 at byte {error.start}; save the vocabulary as UTF-8") from None
        return cls(text.removesuffix("\n").split("\n"))

    @property
    def sha256(self) -> str:
        """Digest of the vocabulary as a file with a newline after every token; packed data carries it."""
        return sha256("".join(token + "\n" for token in self.tokens).encode()).hexdigest()

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Return the ids of text, [tokens], uint16 where the vocabulary allows it and uint32 where not."""
        text, codes = self._codes(text)
        ids = self._table[codes]
        word = _is_word(codes)
        if not word.any():
            return ids.astype(self.dtype)
        edges = np.diff(word.astype(np.int8), prepend=0, append=0)
        starts = np.flatnonzero(edges == 1)  # [words]
        pieces = [self._pieces(found) for found in _WORD.findall(text)]
        counts = np.fromiter(map(len, pieces), np.int64, len(pieces))
        lengths = (~word).astype(np.int64)  # tokens of each character; a word's stand at its first
        lengths[starts] = counts
        between = np.flatnonzero((codes[1:-1] == 0x20) & word[:-2] & word[2:]) + 1
        lengths[between] = 0
        ends = np.cumsum(lengths)
        result = np.empty(int(ends[-1]), self.dtype)
        alone = (lengths == 1) & ~word
        result[ends[alone] - 1] = ids[alone]
        flat = np.fromiter(chain.from_iterable(pieces), np.int64, int(counts.sum()))
        first = ends[starts] - counts
        before = np.cumsum(counts) - counts
        result[np.arange(len(flat)) + np.repeat(first - before, counts)] = flat
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; [PAD] and [EOS] are left out, an unknown character stays '[UNK]'."""
        parts: list[str] = []
        after_word = False
        for number in ids:
            token = self.tokens[number]
            if token.startswith("##") and len(token) > 2:
                parts.append(token[2:])
                after_word = True
                continue
            word = _WORD.fullmatch(token) is not None
            if word and after_word:
                parts.append(" ")
            after_word = word
            if number not in (self.pad, self.end):
                parts.append({self.newline: "\n", self.space: " "}.get(number, token))
        return "".join(parts)

    def outside(self, text: str) -> set[str]:
        """Return the distinct characters of text that the vocabulary does not hold."""
        _, codes = self._codes(text)
        return {chr(code) for code in np.unique(codes[self._table[codes] == self.unknown])}

    def _codes(self, text: str) -> tuple[str, NDArray[np.uint32]]:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        dropped = self._table[codes] < 0
        if dropped.any():
            codes = codes[~dropped]
            text = codes.tobytes().decode("utf-32-le", "surrogatepass")
        return text, codes

    def _pieces(self, word: str) -> list[int]:
        known = self._words.get(word)
        if known is not None:
            return known
        ids: list[int] = []
        at = 0
        while at < len(word):  # longest match first, as WordPiece; single characters always match
            stop = min(len(word), at + self._longest)
            while True:
                found = self._ids.get(("##" if at else "") + word[at:stop])
                if found is not None:
                    break
                stop -= 1
            ids.append(found)
            at = stop
        if len(word) <= 64:
            if len(self._words) >= _REMEMBERED:
                self._words.clear()
            self._words[word] = ids
        return ids


def _is_word(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    folded = codes | 0x20  # upper case to lower; digits are unchanged
    letters = (folded >= 0x61) & (folded <= 0x7A)
    return letters | ((codes >= 0x30) & (codes <= 0x39))


def _check(tokens: list[str], ids: dict[str, int]) -> None:
    alphabet = [chr(code) for code in (*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B))]
    needed = [UNKNOWN, END, NEWLINE, SPACE, *alphabet, *("##" + letter for letter in alphabet)]
    missing = [token for token in needed if token not in ids]
    if missing:
        raise TokenizerError(
            f"the vocabulary lacks {len(missing)} tokens that lossless encoding needs, first {missing[:5]}; "
            "make one with hanmo.train.vocabulary"
        )
    if tokens[0] != PAD:
        raise TokenizerError(
            f"id 0 is {tokens[0]!r}, expected {PAD!r}: the loss ignores id 0; move {PAD} to the first line"
        )
    if len(ids) != len(tokens):
        twice = next(token for number, token in enumerate(tokens) if ids[token] != number)
        raise TokenizerError(f"the vocabulary holds {twice!r} twice; remove one of the lines")


def _character_table(ids: dict[str, int], newline: int, space: int, unknown: int) -> NDArray[np.int32]:
    """Return the id of every code point; -1 where the character is dropped."""
    table = np.full(0x110000, unknown, np.int32)
    for code in chain(range(0x20), range(0x7F, 0xA0), (0xAD, 0xFEFF), range(0x200B, 0x2010), range(0x202A, 0x202F)):
        table[code] = -1
    for code in (0x09, 0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000):
        assert code == 0x09 or category(chr(code)) == "Zs"
        table[code] = space
    table[0x0A] = newline
    for token, number in ids.items():
        if len(token) == 1 and table[ord(token)] == unknown:
            table[ord(token)] = number
    return table
