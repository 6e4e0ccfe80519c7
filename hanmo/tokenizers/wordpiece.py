"""WordPiece with BERT's and CLUE's vocabularies: Chinese by characters, other words by their longest pieces.

Knows the vocabulary, its ids and how tokens become readable Chinese again. The rules of splitting are in exact.py, the
fast form of them in codes.py. Texts without odd options take the fast path: one table look-up a character, and the Rust
WordPiece of Hugging Face `tokenizers` for every word met first. A custom pre_tokenize, and offsets, take the exact
path; the ids are the same.

Stand-ins. “ ” ‘ ’ … and — are not in bert-base-chinese's vocabulary and become [UNK], and a newline is a space
there and in CLUE's. With stand_ins=True each is written as a mark that the vocabulary has and Chinese text has no
use for, and read back as itself:

    “ 〝    ” 〞    ‘ ‹    ’ ›    … ‥    — ︱    newline ‖

A character of the right column in the text itself becomes [UNK] then, so that nothing is ever read back as what it was
not. It is off by default, because the published models were trained with [UNK] there; turn it on for a model that is to
learn them.
"""

from collections.abc import Iterable, Mapping, Sequence
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
from hanmo.tokenizers.characters import Kind, fold, is_chinese, is_punctuation, kind
from hanmo.tokenizers.codes import DROP, SPACE, WORD, CodeSplitter, codes_of, folded_codes
from hanmo.tokenizers.exact import PreTokenize, match, split_text
from hanmo.tokenizers.protocol import SpecialIds
from hanmo.tokenizers.vocab import read_vocab

__all__ = ["STAND_INS", "WordPiece"]

STAND_INS: Mapping[str, str] = dict(zip("“”‘’…—\n", "〝〞‹›‥︱‖", strict=True))
_SPACED_AFTER = frozenset(",;:!?")


class WordPiece(BaseTokenizer):
    """A WordPiece tokenizer.

    vocabulary: the tokens in the order of their ids, or the path of a vocab.txt; a repeated token has its last id.
    lowercase: fold case and accents, as all published Chinese models do.
    start, end: the marks around a text, None for none; GPT2_ML has none.
    word_limit: words of more characters are unknown.
    pre_tokenize: cuts the text into words of its own first, as jieba does for WoBERT: see words.py.
    stand_ins: True for STAND_INS where the vocabulary needs and has them, or a table of your own.
    added: id → token that is found in a text before it is split; ids that the vocabulary has not are the next ones.
    Raises MissingFile, and TokenizerError for a vocabulary that read_vocab refuses, that has no [UNK] or not the start
    and end named, or for a stand-in or an added token that cannot be.
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
        stand_ins: bool | Mapping[str, str] = False,
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
        self._named_ids = frozenset(self._named.values())
        self._lowercase = lowercase
        self._word_limit = word_limit
        self._pre_tokenize = pre_tokenize and partial(_without_spaces, pre_tokenize)
        self._stand_ins = self._checked(stand_ins)
        self._sources = {to: source for source, to in self._stand_ins.items()}
        self._exchange = self._exchanges()
        self._rust = RustWordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=word_limit)
        self._splitter = CodeSplitter(self._judge, self._word_ids, len(self._tokens))

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self._tokens)

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
        """Whether texts are cut into words first."""
        return self._pre_tokenize is not None

    @property
    def stand_ins(self) -> dict[str, str]:
        """The characters that are written as others, each with its stand-in."""
        return dict(self._stand_ins)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        return self._ids.get(token, self._added_ids.get(token))

    def id_to_token(self, number: int) -> str:
        """Return the token of an id. Raises TokenizerError for an id that the vocabulary does not have."""
        return self._tokens[self._check_id(number)]

    def stream(self, *, special: bool = False) -> "ChineseStream":
        """Return a new incremental decoder."""
        return ChineseStream(self, special=special)

    def text_of_token(self, number: int) -> str:
        """Return the token of an id with its stand-in, if it is one, undone."""
        token = self.id_to_token(number)
        return self._sources.get(token, token)

    def is_named(self, number: int) -> bool:
        """Say whether an id is a token with a meaning of its own: '[MASK]', '[unused1]', the start and end marks."""
        return self._check_id(number) in self._named_ids

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text without marks, [tokens]."""
        if self._pre_tokenize is not None or self._always is not None:
            return super().encode_array(text)
        return self._splitter.array(*self._judged(text))

    def _plain_ids(self, text: str) -> list[int]:
        if self._pre_tokenize is not None:
            return self._exact_ids(self._exact_tokens(text))
        return self._splitter.ids(*self._judged(text))

    def _judged(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        codes = folded_codes(text) if self._lowercase else codes_of(text)
        return codes, self._splitter.judged(codes)

    def _plain_spans(self, text: str) -> tuple[list[int], Spans]:
        pieces = self._exact_tokens(text)
        return self._exact_ids(pieces), match(self._stood_in(text), pieces, lowercase=self._lowercase)

    def _exact_tokens(self, text: str) -> list[str]:
        return split_text(
            self._stood_in(text),
            self._ids,
            lowercase=self._lowercase,
            word_limit=self._word_limit,
            pre_tokenize=self._pre_tokenize,
        )

    def _exact_ids(self, pieces: list[str]) -> list[int]:
        return [self._ids.get(piece, self._unk) for piece in pieces]

    def _stood_in(self, text: str) -> str:
        return text.translate(self._exchange) if self._exchange else text

    def _judge(self, character: str) -> int:
        if character in self._stand_ins:
            return self._ids[self._stand_ins[character]]
        if character in self._sources:
            return self._unk
        judgement = kind(character)
        if judgement is Kind.ALONE:
            return self._ids.get(character, self._unk)
        return {Kind.SPACE: SPACE, Kind.DROP: DROP, Kind.WORD: WORD}[judgement]

    def _word_ids(self, word: str) -> list[int]:
        whole = self._ids.get(word)  # the limit holds for words that need cutting
        return [piece.id for piece in self._rust.tokenize(word)] if whole is None else [whole]

    def _needed(self, token: str, where: str) -> int:
        number = self.token_to_id(token)
        if number is None:
            raise TokenizerError(
                f"{where} has no {token!r}; is it another model's? The marks can be left out with start=None, end=None"
            )
        return number

    def _checked(self, stand_ins: bool | Mapping[str, str]) -> dict[str, str]:
        if isinstance(stand_ins, bool):
            wanted = STAND_INS if stand_ins else {}
            return {source: to for source, to in wanted.items() if source not in self._ids and to in self._ids}
        for source, to in stand_ins.items():
            if len(source) != 1 or len(to) != 1 or kind(to) is not Kind.ALONE:
                raise TokenizerError(
                    f"the stand-in {source!r} → {to!r} is not from one character to one that stands alone, "
                    "as a mark does; choose another"
                )
            if self._lowercase and fold(source + to) != source + to:
                raise TokenizerError(
                    f"the stand-in {source!r} → {to!r} would be folded to lower case first; choose another"
                )
            if to not in self._ids:
                raise TokenizerError(f"the vocabulary has no {to!r} to stand in for {source!r}; choose another")
            if source in self._ids or source in stand_ins.values():
                raise TokenizerError(f"{source!r} is a token or a stand-in itself and cannot be replaced; remove it")
        if len(set(stand_ins.values())) != len(stand_ins):
            raise TokenizerError(f"two characters have one stand-in in {dict(stand_ins)!r}; give each its own")
        return dict(stand_ins)

    def _exchanges(self) -> dict[int, str]:
        if not self._stand_ins:
            return {}
        marks = (chr(code) for code in range(0x2E00, 0x2E50))  # rare punctuation: none of it is in a Chinese vocabulary
        unknown = next(mark for mark in marks if is_punctuation(mark) and mark not in self._ids)
        lost = {ord(to): unknown for to in self._sources}
        return {**lost, **{ord(source): to for source, to in self._stand_ins.items()}}


class ChineseStream:
    """Joins tokens to text: a space where two words of letters or digits meet, and after , ; : ! ? between such words.

    A full stop gets none, for it stands inside numbers, names and addresses as often as at an end. What is written
    never depends on what follows, so that every id's text is certain at once.
    """

    def __init__(self, tokenizer: WordPiece, *, special: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._word = False  # the last token can be parted from a next word
        self._after_mark = False  # the last token is a mark that English follows with a space

    def push(self, id: int) -> str:
        """Take the next id and return its text."""
        if self._tokenizer.is_named(id):
            if not self._special:
                return ""
            self._word = self._after_mark = False
            return self._tokenizer.id_to_token(id)
        token = self._tokenizer.id_to_token(id)
        glued = token.startswith("##")
        token = token[2:] if glued else token
        if not token:
            return ""
        shown = token if glued else self._tokenizer.text_of_token(id)
        begins, ends = not _alone(token[0]), not _alone(token[-1])
        english = begins and token[0].isascii() and token[0].isalpha()
        spaced = not glued and ((self._word and begins) or (self._after_mark and english))
        self._after_mark = self._word and shown in _SPACED_AFTER
        self._word = ends
        return " " + shown if spaced else shown

    def flush(self) -> str:
        """Return '', for nothing is ever held back."""
        self._word = self._after_mark = False
        return ""


def _without_spaces(pre_tokenize: PreTokenize, text: str) -> Iterable[str]:
    # bert-base-chinese has the token U+2028, but a line separator in a text is a space
    return (part for part in pre_tokenize(text) if not part.isspace())


def _alone(character: str) -> bool:
    return is_chinese(character) or is_punctuation(character) or character.isspace()


def _in_brackets(token: str) -> bool:
    return len(token) > 2 and token[0] == "[" and token[-1] == "]"
