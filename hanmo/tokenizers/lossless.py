r"""Chinese by characters and ASCII words by WordPiece, with tokens for newline and space, so that decoding is lossless.

For vocabularies with [NL], [SP] and [EOS], as `hanmo vocab` makes them for models trained from scratch.

    text       如 果   P y t h o n   3 . 1 4 ，↵
    tokens     如 果 [SP] Py ##thon 3 . 14 ， [NL]

A space between two ASCII words is implied, because the pieces of one word have '##'; every other is [SP].
decode(encode(text).ids) == text if every character of text is in the vocabulary, except for line ends (made '\n'),
other white space (made ' ') and control characters (dropped). Case is kept.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import TokenizerError
from hanmo.tokenizers.base import BaseTokenizer, Spans
from hanmo.tokenizers.bert_rules import DROP, SPACE, WORD
from hanmo.tokenizers.codes import CodeSplitter, codes_of
from hanmo.tokenizers.protocol import SpecialIds
from hanmo.tokenizers.vocab import read_vocab

__all__ = ["END", "NEWLINE", "SPACE_TOKEN", "Lossless"]

END, NEWLINE, SPACE_TOKEN = "[EOS]", "[NL]", "[SP]"
_ASCII = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PARTS = re.compile("[A-Za-z0-9]+|.", re.DOTALL)
_DROPPED = frozenset(
    map(chr, (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F)))
) - set("\n\t")


class Lossless(BaseTokenizer):
    """A tokenizer that keeps case, spaces and newlines.

    vocabulary: the tokens in the order of their ids, or the path of a vocab.txt.
    ends: whether encode adds [EOS] by default.
    Raises TokenizerError for a vocabulary that lacks a required token.
    """

    def __init__(self, vocabulary: Sequence[str] | str | Path, *, ends: bool = False) -> None:
        self._tokens = read_vocab(vocabulary) if isinstance(vocabulary, str | Path) else list(vocabulary)
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        needed = ["[PAD]", "[UNK]", END, NEWLINE, SPACE_TOKEN, *_ASCII, *("##" + letter for letter in _ASCII)]
        missing = [token for token in needed if token not in self._ids]
        if missing:
            raise TokenizerError(
                f"the vocabulary lacks {len(missing)} tokens that lossless tokenization needs, first {missing[:5]}; "
                "make one with 'hanmo vocab', or use WordPiece"
            )
        if self._tokens[0] != "[PAD]":
            raise TokenizerError(
                f"id 0 is {self._tokens[0]!r}, expected '[PAD]': training ignores id 0; move [PAD] to the first line"
            )
        if len(self._ids) != len(self._tokens):
            twice = next(token for number, token in enumerate(self._tokens) if self._ids[token] != number)
            raise TokenizerError(f"the vocabulary holds {twice!r} twice; remove one of them")
        self._unk, self._newline, self._space = (self._ids[name] for name in ("[UNK]", NEWLINE, SPACE_TOKEN))
        self._longest = max(map(len, self._tokens))
        special = SpecialIds(pad=self._ids["[PAD]"], unk=self._unk, end=self._ids[END], mask=self._ids.get("[MASK]"))
        named = {
            token: number
            for token, number in self._ids.items()
            if len(token) > 2 and token[0] == "[" and token[-1] == "]" and token not in (NEWLINE, SPACE_TOKEN)
        }
        super().__init__(special, named, ends=ends)
        self._splitter = CodeSplitter(self._judge, self._pieces, len(self._tokens))

    def stream(self, *, special: bool = False) -> "LosslessStream":
        """Return a new incremental decoder."""
        return LosslessStream(self, self._shown(special))

    def text_of_token(self, number: int) -> str:
        """Return the token of an id, for [NL] and [SP] the character that it is."""
        return {self._newline: "\n", self._space: " "}.get(number) or self.id_to_token(number)

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text without marks, [tokens]."""
        return self._splitter.array(*self._judged(text))

    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        return self._spans(text) if detail else (self._splitter.ids(*self._judged(text)), [])

    def _judged(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the code points that are not dropped and their ids or classes; SPACE for implied spaces."""
        codes = codes_of(text.replace("\r\n", "\n").replace("\r", "\n"))
        judged = self._splitter.judged(codes)
        if len(judged) and judged.min() < 0:
            kept = judged != DROP
            codes, judged = codes[kept], judged[kept]
            word = judged == WORD
            judged[1:-1][(codes[1:-1] == 0x20) & word[:-2] & word[2:]] = SPACE
        return codes, judged

    def _spans(self, text: str) -> tuple[list[int], Spans]:
        kept = [at for at, character in enumerate(text) if character not in _DROPPED or character == "\r"]
        kept = [at for at in kept if text[at : at + 2] != "\r\n"]  # the position of such a line end is its '\n'
        line = "".join(text[at] for at in kept).replace("\r", "\n")
        found = [match.span() for match in _PARTS.finditer(line)]
        ids: list[int] = []
        spans: Spans = []
        for index, (start, stop) in enumerate(found):
            judged = self._judge(line[start])
            if judged != WORD:
                between = line[start] == " " and 0 < index < len(found) - 1
                if not (between and line[start - 1] in _ASCII and line[stop] in _ASCII):
                    ids.append(judged)
                    spans.append((kept[start], kept[start] + 1))
                continue
            for number in self._pieces(line[start:stop]):
                length = len(self._tokens[number].removeprefix("##"))
                ids.append(number)
                spans.append((kept[start], kept[start + length - 1] + 1))
                start += length
        return ids, spans

    def _judge(self, character: str) -> int:
        if character in _ASCII:
            return WORD
        if character == "\n":
            return self._newline
        if character == "\t" or category(character) == "Zs":
            return self._space
        return DROP if character in _DROPPED else self._ids.get(character, self._unk)

    def _pieces(self, word: str) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(word):  # longest match first; single letters and digits always match
            for stop in range(min(len(word), at + self._longest), at, -1):
                number = self._ids.get(("##" if at else "") + word[at:stop])
                if number is not None:
                    ids.append(number)
                    at = stop
                    break
        return ids


class LosslessStream:
    """Incremental decoder that never holds text back.

    shown: special id → the text written for it, '' for none.
    """

    def __init__(self, tokenizer: Lossless, shown: dict[int, str]) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._after_word = False

    def push(self, id: int) -> str:
        """Add an id and return its text."""
        name = self._shown.get(id)
        if name is not None:
            self._after_word = False
            return name
        token = self._tokenizer.text_of_token(id)
        if token.startswith("##") and len(token) > 2:
            self._after_word = True
            return token[2:]
        spaced = self._after_word and token[0] in _ASCII
        self._after_word = token[0] in _ASCII
        return " " + token if spaced else token

    def flush(self) -> str:
        """Start anew and return ''."""
        self._after_word = False
        return ""
