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
from string import ascii_letters, digits
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import TokenizerError
from hanmo.tokenizers.bert_rules import DROP, SPACE, WORD, split_word
from hanmo.tokenizers.codes import CodeSplitter, codes_of
from hanmo.tokenizers.protocol import Spans, SpecialIds, Tokenizer
from hanmo.tokenizers.streams import WordStream
from hanmo.tokenizers.vocab import read_vocab

END, NEWLINE, SPACE_TOKEN = "[EOS]", "[NL]", "[SP]"
_ASCII = frozenset(digits + ascii_letters)
_PARTS = re.compile("[A-Za-z0-9]+|.", re.DOTALL)
DROPPED = frozenset(
    map(chr, (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F)))
) - set("\n\t")


class Lossless(Tokenizer):
    """A tokenizer that keeps case, spaces and newlines.

    vocabulary: the tokens in the order of their ids, or the path of a vocab.txt.
    ends: whether encode adds [EOS] by default.
    Raises TokenizerError for a vocabulary that lacks a required token.
    """

    def __init__(self, vocabulary: Sequence[str] | str | Path, *, ends: bool = False) -> None:
        self.tokens = read_vocab(vocabulary) if isinstance(vocabulary, str | Path) else list(vocabulary)
        self.vocab_size = len(self.tokens)
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        letters = sorted(_ASCII)
        needed = ["[PAD]", "[UNK]", END, NEWLINE, SPACE_TOKEN, *letters, *("##" + letter for letter in letters)]
        missing = [token for token in needed if token not in self._ids]
        if missing:
            raise TokenizerError(
                f"the vocabulary lacks {len(missing)} tokens that lossless tokenization needs, first {missing[:5]}; "
                "make one with 'hanmo vocab', or use WordPiece"
            )
        if self.tokens[0] != "[PAD]":
            raise TokenizerError(
                f"id 0 is {self.tokens[0]!r}, expected '[PAD]': training ignores id 0; move [PAD] to the first line"
            )
        if len(self._ids) != self.vocab_size:
            twice = next(token for number, token in enumerate(self.tokens) if self._ids[token] != number)
            raise TokenizerError(f"the vocabulary holds {twice!r} twice; remove one of them")
        self._unk, self._newline, self._space = (self._ids[name] for name in ("[UNK]", NEWLINE, SPACE_TOKEN))
        self._longest = max(map(len, self.tokens))
        special = SpecialIds(pad=0, unk=self._unk, end=self._ids[END], mask=self._ids.get("[MASK]"))
        named = {
            token: number
            for token, number in self._ids.items()
            if len(token) > 2 and token[0] == "[" and token[-1] == "]" and token not in (NEWLINE, SPACE_TOKEN)
        }
        super().__init__(special, named, ends=ends)
        self._splitter = CodeSplitter(self._classify, self._pieces, self.vocab_size)

    def stream(self, *, special: bool = False) -> WordStream:
        characters = {self._newline: "\n", self._space: " "}
        return WordStream(
            lambda number: characters.get(number) or self.id_to_token(number),
            self._shown(special),
            in_word=_ASCII.__contains__,
        )

    def encode_array(self, text: str) -> NDArray[np.int32]:
        return self._splitter.array(*self._classified(text))

    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        return self._spans(text) if detail else (self._splitter.ids(*self._classified(text)), [])

    def _classified(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the code points that are not dropped and their ids or classes; SPACE for implied spaces."""
        codes = codes_of(text.replace("\r\n", "\n").replace("\r", "\n"))
        classes = self._splitter.classes(codes)
        if len(classes) and classes.min() < 0:
            kept = classes != DROP
            codes, classes = codes[kept], classes[kept]
            word = classes == WORD
            classes[1:-1][(codes[1:-1] == 0x20) & word[:-2] & word[2:]] = SPACE
        return codes, classes

    def _spans(self, text: str) -> tuple[list[int], Spans]:
        kept = [at for at, character in enumerate(text) if character not in DROPPED or character == "\r"]
        kept = [at for at in kept if text[at : at + 2] != "\r\n"]  # the position of such a line end is its '\n'
        line = "".join(text[at] for at in kept).replace("\r", "\n")
        found = [match.span() for match in _PARTS.finditer(line)]
        ids: list[int] = []
        spans: Spans = []
        for index, (start, stop) in enumerate(found):
            number = self._classify(line[start])
            if number != WORD:
                between = line[start] == " " and 0 < index < len(found) - 1
                if not (between and line[start - 1] in _ASCII and line[stop] in _ASCII):
                    ids.append(number)
                    spans.append((kept[start], kept[start] + 1))
                continue
            for number in self._pieces(line[start:stop]):
                length = len(self.tokens[number].removeprefix("##"))
                ids.append(number)
                spans.append((kept[start], kept[start + length - 1] + 1))
                start += length
        return ids, spans

    def _classify(self, character: str) -> int:
        if character in _ASCII:
            return WORD
        if character == "\n":
            return self._newline
        if character == "\t" or category(character) == "Zs":
            return self._space
        return DROP if character in DROPPED else self._ids.get(character, self._unk)

    def _pieces(self, word: str) -> list[int]:
        return [self._ids[piece] for piece in split_word(word, self._ids, len(word), longest=self._longest)]
