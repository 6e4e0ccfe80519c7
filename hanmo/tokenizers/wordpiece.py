"""WordPiece with BERT's and CLUE's vocabularies: Chinese by characters, other words by their longest pieces.

Most texts take the fast path of codes.py: one table look-up per character, and the Rust WordPiece of Hugging Face
`tokenizers` for each new word. A custom pre_tokenize, and offsets, take the rules of bert_rules.py; the ids are equal.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers.models import WordPiece as RustWordPiece
from tokenizers.normalizers import BertNormalizer

from hanmo.tokenizers.added import extended
from hanmo.tokenizers.bert_rules import SINGLE, PreTokenize, in_word, kind, match, split_text
from hanmo.tokenizers.codes import CodeSplitter, codes_of, folded_codes
from hanmo.tokenizers.protocol import Spans, SpecialIds, Tokenizer
from hanmo.tokenizers.streams import WordStream
from hanmo.tokenizers.vocab import read_vocab

SPACED_AFTER = frozenset(",;:!?")  # not the full stop, which is as often part of a number, name or address


class WordPiece(Tokenizer):
    """A WordPiece tokenizer.

    vocabulary: the tokens in the order of their ids, or the path of a vocab.txt; a repeated token has its last id.
    lowercase: fold case and accents, as all published Chinese models do.
    start, end: the marks around a text, None for none; GPT2_ML has none.
    word_limit: longer words, in characters, are unknown.
    pre_tokenize: splits the text into words first, as jieba does for WoBERT.
    added: id → added token; those that the vocabulary lacks must have the ids after it.
    Raises MissingFile, and TokenizerError for a vocabulary that read_vocab refuses or that lacks [UNK] or the marks,
    or for an added token whose id is another token's.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | str | Path,
        *,
        lowercase: bool = True,
        start: str | None = "[CLS]",
        end: str | None = "[SEP]",
        word_limit: int = 200,
        pre_tokenize: PreTokenize | None = None,
        added: Mapping[int, AddedToken] | None = None,
    ) -> None:
        if isinstance(vocabulary, str | Path):
            tokens, where = read_vocab(vocabulary), f"the vocabulary {vocabulary}"
        else:
            tokens, where = list(vocabulary), f"the vocabulary of {len(vocabulary)} tokens"
        self._ids = {token: number for number, token in enumerate(tokens)}
        self.added = dict(sorted((added or {}).items()))
        self._added_ids = {token.content: number for number, token in self.added.items()}
        self.tokens = extended(tokens, self.added, where)
        self.vocab_size = len(self.tokens)
        self._unk = self._needed("[UNK]", where)
        marks = [None if name is None else self._needed(name, where) for name in (start, end)]
        special = SpecialIds(self.token_to_id("[PAD]"), self._unk, marks[0], marks[1], self.token_to_id("[MASK]"))
        known = special.known()
        named = {
            token: number
            for token, number in self._ids.items()
            if number in known or (len(token) > 2 and token[0] == "[" and token[-1] == "]")
        }
        normalizer = BertNormalizer(lowercase=lowercase)
        super().__init__(special, named, ends=start is not None or end is not None, added=added, normalizer=normalizer)
        self.lowercase, self.word_limit = lowercase, word_limit
        self.pre_tokenize = pre_tokenize
        self._rust = RustWordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=word_limit)
        self._splitter = CodeSplitter(self._classify, self._word_ids, self.vocab_size)

    @property
    def pre_tokenizes(self) -> bool:
        """Whether the text is split into words first."""
        return self.pre_tokenize is not None

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token, self._added_ids.get(token))

    def stream(self, *, special: bool = False) -> WordStream:
        return WordStream(self.id_to_token, self._shown(special), in_word=in_word, marks=SPACED_AFTER)

    def encode_array(self, text: str) -> NDArray[np.int32]:
        if self.pre_tokenizes or self._always is not None:
            return super().encode_array(text)
        return self._splitter.array(*self._classified(text))

    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        if not detail and not self.pre_tokenizes:
            return self._splitter.ids(*self._classified(text)), []
        pieces = split_text(
            text,
            self._ids,
            lowercase=self.lowercase,
            word_limit=self.word_limit,
            pre_tokenize=self.pre_tokenize and partial(_without_spaces, self.pre_tokenize),
        )
        ids = [self._ids.get(piece, self._unk) for piece in pieces]
        return ids, match(text, pieces, lowercase=self.lowercase) if detail else []

    def _classified(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        codes = folded_codes(text) if self.lowercase else codes_of(text)
        return codes, self._splitter.classes(codes)

    def _classify(self, character: str) -> int:
        found = kind(character)
        return self._ids.get(character, self._unk) if found == SINGLE else found

    def _word_ids(self, word: str) -> list[int]:
        number = self._ids.get(word)  # word_limit applies only to words that are not tokens
        return [piece.id for piece in self._rust.tokenize(word)] if number is None else [number]


def _without_spaces(pre_tokenize: PreTokenize, text: str) -> Iterable[str]:
    # bert-base-chinese has the token U+2028, but a line separator in a text is a space
    return (part for part in pre_tokenize(text) if not part.isspace())
