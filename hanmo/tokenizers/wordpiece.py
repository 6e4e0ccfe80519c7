"""WordPiece with BERT's and CLUE's vocabularies: Chinese by characters, other words by their longest pieces.

Most texts take the fast path of codes.py: one table look-up per character, and the Rust WordPiece of Hugging Face
`tokenizers` for each new word. A custom pre_tokenize, and offsets, take the rules of bert_rules.py; the ids are equal.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers.models import WordPiece as RustWordPiece
from tokenizers.normalizers import BertNormalizer

from hanmo.errors import TokenizerError
from hanmo.tokenizers.added import extended
from hanmo.tokenizers.base import BaseTokenizer, Spans
from hanmo.tokenizers.bert_rules import SINGLE, PreTokenize, is_chinese, is_punctuation, kind, match, split_text
from hanmo.tokenizers.codes import CodeSplitter, codes_of, folded_codes
from hanmo.tokenizers.protocol import SpecialIds
from hanmo.tokenizers.vocab import read_vocab

__all__ = ["WordPiece"]

_SPACED_AFTER = frozenset(",;:!?")


class WordPiece(BaseTokenizer):
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
            self._tokens, where = read_vocab(vocabulary), f"the vocabulary {vocabulary}"
        else:
            self._tokens, where = list(vocabulary), f"the vocabulary of {len(vocabulary)} tokens"
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        self._added_ids = {token.content: number for number, token in (added or {}).items()}
        self._tokens = extended(self._tokens, added or {}, where)
        self._unk = self._needed("[UNK]", where)
        special = SpecialIds(
            pad=self.token_to_id("[PAD]"),
            unk=self._unk,
            start=None if start is None else self._needed(start, where),
            end=None if end is None else self._needed(end, where),
            mask=self.token_to_id("[MASK]"),
        )
        marks = special.known()
        named = {t: number for t, number in self._ids.items() if number in marks or _in_brackets(t)}
        normalizer = BertNormalizer(lowercase=lowercase)
        super().__init__(special, named, ends=start is not None or end is not None, added=added, normalizer=normalizer)
        self._lowercase = lowercase
        self._word_limit = word_limit
        self._pre_tokenize = pre_tokenize and partial(_without_spaces, pre_tokenize)
        self._rust = RustWordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=word_limit)
        self._splitter = CodeSplitter(self._judge, self._word_ids, len(self._tokens))

    @property
    def tokens(self) -> list[str]:
        """All tokens in the order of their ids."""
        return list(self._tokens)

    @property
    def lowercase(self) -> bool:
        """Whether case and accents are folded."""
        return self._lowercase

    @property
    def pre_tokenizes(self) -> bool:
        """Whether texts are split into words first."""
        return self._pre_tokenize is not None

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        return self._ids.get(token, self._added_ids.get(token))

    def stream(self, *, special: bool = False) -> "ChineseStream":
        """Return a new incremental decoder."""
        return ChineseStream(self.id_to_token, self._shown(special))

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text without marks, [tokens]."""
        if self._pre_tokenize is not None or self._always is not None:
            return super().encode_array(text)
        return self._splitter.array(*self._judged(text))

    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        if not detail and self._pre_tokenize is None:
            return self._splitter.ids(*self._judged(text)), []
        pieces = split_text(
            text,
            self._ids,
            lowercase=self._lowercase,
            word_limit=self._word_limit,
            pre_tokenize=self._pre_tokenize,
        )
        ids = [self._ids.get(piece, self._unk) for piece in pieces]
        return ids, match(text, pieces, lowercase=self._lowercase) if detail else []

    def _judged(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        codes = folded_codes(text) if self._lowercase else codes_of(text)
        return codes, self._splitter.judged(codes)

    def _judge(self, character: str) -> int:
        judgement = kind(character)
        return self._ids.get(character, self._unk) if judgement == SINGLE else judgement

    def _word_ids(self, word: str) -> list[int]:
        number = self._ids.get(word)  # word_limit applies only to words that are not tokens
        return [piece.id for piece in self._rust.tokenize(word)] if number is None else [number]

    def _needed(self, token: str, where: str) -> int:
        number = self.token_to_id(token)
        if number is None:
            raise TokenizerError(
                f"{where} has no {token!r}; is it another model's? The marks can be left out with start=None, end=None"
            )
        return number


class ChineseStream:
    """Incremental decoder: a space between two words of letters or digits, and after , ; : ! ? between such words.

    None after a full stop, which is as often part of a number, name or address. No text is held back.
    shown: special id → the text written for it, '' for none.
    """

    def __init__(self, id_to_token: Callable[[int], str], shown: Mapping[int, str]) -> None:
        self._id_to_token, self._shown = id_to_token, shown
        self._word = False  # the last token ends in a letter or digit
        self._after_mark = False  # the last token is a mark that English writes a space after

    def push(self, id: int) -> str:
        """Add an id and return its text."""
        name = self._shown.get(id)
        if name is not None:
            if name:
                self._word = self._after_mark = False
            return name
        token = self._id_to_token(id)
        glued = token.startswith("##")
        token = token[2:] if glued else token
        if not token:
            return ""
        begins, ends = not _single(token[0]), not _single(token[-1])
        english = begins and token[0].isascii() and token[0].isalpha()
        spaced = not glued and ((self._word and begins) or (self._after_mark and english))
        self._after_mark = self._word and token in _SPACED_AFTER
        self._word = ends
        return " " + token if spaced else token

    def flush(self) -> str:
        """Start anew and return ''."""
        self._word = self._after_mark = False
        return ""


def _without_spaces(pre_tokenize: PreTokenize, text: str) -> Iterable[str]:
    # bert-base-chinese has the token U+2028, but a line separator in a text is a space
    return (part for part in pre_tokenize(text) if not part.isspace())


def _single(character: str) -> bool:
    return is_chinese(character) or is_punctuation(character) or character.isspace()


def _in_brackets(token: str) -> bool:
    return len(token) > 2 and token[0] == "[" and token[-1] == "]"
