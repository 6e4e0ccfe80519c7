"""bert4keras.tokenizers: Tokenizer, SpTokenizer, load_vocab, save_vocab, with the arguments and results of 0.11.5.

Follows bert4keras in everything that a result shows, its spacing in decode included. Where it only crashed (an unknown
word and no [UNK], a decoded text that begins with '##') there is a result, or an error that says what to do. For new
code hanmo.tokenizers is quicker and joins Chinese text better.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hanmo.compat.bert4keras._sequences import truncate_sequences
from hanmo.compat.bert4keras._vocabulary import StrPath, is_redundant, load_vocab, save_vocab
from hanmo.errors import TokenizerError, Unsupported
from hanmo.tokenizers.bert_rules import fold, is_chinese, is_control, is_punctuation, is_space, split_text, split_word
from hanmo.tokenizers.sentence_piece import load_model

__all__ = ["SpTokenizer", "Tokenizer", "TokenizerBase", "load_vocab", "save_vocab"]

PreTokenize = Callable[[str], Iterable[str]]

_CJK_PUNCTUATION_RANGES = (  # bert4keras's own choice; a space after one of these is taken away
    *((0xFF02, 0xFF0D), (0xFF0F, 0xFF0F), (0xFF1A, 0xFF1E), (0xFF20, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF60)),
    *((0xFF62, 0xFF64), (0x3000, 0x3001), (0x3003, 0x3003), (0x3008, 0x3011), (0x3014, 0x301F), (0x3030, 0x3030)),
    *((0x303E, 0x303F), (0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0xFE4F, 0xFE4F)),
    *((0xFE51, 0xFE51), (0xFE54, 0xFE54), (0xB7, 0xB7), (0xFF01, 0xFF01), (0xFF1F, 0xFF1F), (0xFF61, 0xFF61)),
    (0x3002, 0x3002),
)
_CJK_PUNCTUATION = "".join(chr(code) for first, last in _CJK_PUNCTUATION_RANGES for code in range(first, last + 1))
_SPACES = re.compile(" +")
_ENGLISH_ENDINGS = re.compile("' (re|m|s|t|ve|d|ll) ")
_SPACE_AFTER_MARK = re.compile(f"([{re.escape(_CJK_PUNCTUATION + '+-/={(<[')}]) ")
_SPLIT_NUMBER = re.compile(r"(\d\.) (\d)")


class TokenizerBase:
    """What both tokenizers share; a subclass adds _tokenize, token_to_id, id_to_token and decode.

    token_start, token_end: marks around a text, None for none. pre_tokenize: cuts a text first. token_translate:
    token → the token to put in its place.
    """

    def __init__(
        self,
        token_start: str | None = "[CLS]",
        token_end: str | None = "[SEP]",
        pre_tokenize: PreTokenize | None = None,
        token_translate: Mapping[str, str] | None = None,
    ) -> None:
        self._token_pad = "[PAD]"
        self._token_unk = "[UNK]"
        self._token_mask = "[MASK]"
        self._token_start = token_start
        self._token_end = token_end
        self._pre_tokenize = pre_tokenize
        self._token_translate = token_translate or {}
        self._token_translate_inv = {new: old for old, new in self._token_translate.items()}

    def tokenize(self, text: str, maxlen: int | None = None) -> list[str]:
        """Return the tokens of a text with its marks, cut to maxlen before the end mark."""
        tokens = [self._token_translate.get(token) or token for token in self._tokenize(text)]
        if self._token_start is not None:
            tokens.insert(0, self._token_start)
        if self._token_end is not None:
            tokens.append(self._token_end)
        if maxlen is not None:
            truncate_sequences(maxlen, -1 - (self._token_end is not None), tokens)
        return tokens

    def token_to_id(self, token: str) -> int:
        """Return the id of a token."""
        raise Unsupported(f"{type(self).__name__} has no token_to_id; write one")

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of tokens."""
        return [self.token_to_id(token) for token in tokens]

    def encode(
        self,
        first_text: str | list[str],
        second_text: str | list[str] | None = None,
        maxlen: int | None = None,
        pattern: str = "S*E*E",
        truncate_from: str | int = "right",
    ) -> tuple[list[int], list[int]]:
        """Return the ids and segment ids of a text or a pair; lists are taken as tokens that are "
        "ready, and cut in place.

        pattern: "S*E*E" drops the second text's start mark, "S*ES*E" keeps it.
        truncate_from: "right", "left", or the index that is taken out until maxlen is reached.
        """
        first = self.tokenize(first_text) if isinstance(first_text, str) else first_text
        second = self.tokenize(second_text) if isinstance(second_text, str) else second_text
        drops_start = second is not None and pattern == "S*E*E"
        if maxlen is not None:
            if truncate_from == "right":
                index = -1 - (self._token_end is not None)
            elif truncate_from == "left":
                index = int(self._token_start is not None)
            else:
                index = int(truncate_from)
            truncate_sequences(maxlen + drops_start, index, first, *([] if second is None else [second]))
        ids = self.tokens_to_ids(first)
        segments = [0] * len(ids)
        if second is not None:
            if drops_start and self._token_start:
                second = second[1:]
            second_ids = self.tokens_to_ids(second)
            ids += second_ids
            segments += [1] * len(second_ids)
        return ids, segments

    def id_to_token(self, i: int) -> str:
        """Return the token of an id."""
        raise Unsupported(f"{type(self).__name__} has no id_to_token; write one")

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ids."""
        return [self.id_to_token(i) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        raise Unsupported(f"{type(self).__name__} has no decode; write one")

    def _tokenize(self, text: str) -> list[str]:
        raise Unsupported(f"{type(self).__name__} has no _tokenize; write one")

    def _name_ids(self, id_of: Callable[[str], int | None]) -> None:
        """Set _token_pad_id and its kind, where the vocabulary has the token."""
        for name in ("pad", "unk", "mask", "start", "end"):
            token = getattr(self, f"_token_{name}")
            number = None if token is None else id_of(token)
            if number is not None:
                setattr(self, f"_token_{name}_id", number)


class Tokenizer(TokenizerBase):
    """BERT's tokenizer.

    token_dict: the path of a vocab.txt, or a dict of token and id.   do_lower_case: fold case and accents.
    word_maxlen: longer words are not cut.   The rest as TokenizerBase.
    """

    def __init__(
        self,
        token_dict: StrPath | dict[str, int],
        do_lower_case: bool = False,
        word_maxlen: int = 200,
        *,
        token_start: str | None = "[CLS]",
        token_end: str | None = "[SEP]",
        pre_tokenize: PreTokenize | None = None,
        token_translate: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(token_start, token_end, pre_tokenize, token_translate)
        self._token_dict = token_dict if isinstance(token_dict, dict) else load_vocab(token_dict)
        self._do_lower_case = do_lower_case
        self._token_dict_inv = {number: token for token, number in self._token_dict.items()}
        self._vocab_size = len(self._token_dict)
        self._word_maxlen = word_maxlen
        self._token_unk_id: int
        self._name_ids(self._token_dict.get)

    def token_to_id(self, token: str) -> int:
        """Return the id of a token, of [UNK] if there is no such token. Raises TokenizerError if there is no [UNK]."""
        number = self._token_dict.get(token, getattr(self, "_token_unk_id", None))
        if number is None:
            raise TokenizerError(
                f"{token!r} is not in the vocabulary of {self._vocab_size} tokens, and neither is {self._token_unk!r}; "
                "name it in startswith when the vocabulary is simplified"
            )
        return number

    def id_to_token(self, i: int) -> str:
        """Return the token of an id. Raises TokenizerError if there is none."""
        if i not in self._token_dict_inv:
            raise TokenizerError(f"the id {i} has no token in the vocabulary of {self._vocab_size} tokens")
        return self._token_dict_inv[i]

    def decode(self, ids: Sequence[int] | None, tokens: Sequence[str] | None = None) -> str:
        """Return the text of ids, or of tokens where they are given, with bert4keras's spaces."""
        text = ""
        for token in tokens or self.ids_to_tokens(ids if ids is not None else []):
            if self._is_special(token):
                continue
            if token[:2] == "##":
                text += token[2:]
            elif len(token) == 1 and self._is_cjk_character(token):
                text += token
            elif len(token) == 1 and self._is_punctuation(token):
                text += token + " "
            elif text and self._is_cjk_character(text[-1]):
                text += token
            else:
                text += " " + token
        text = _SPACES.sub(" ", text)
        text = _ENGLISH_ENDINGS.sub(r"'\1 ", text)
        text = _SPACE_AFTER_MARK.sub(r"\1", text)
        return _SPLIT_NUMBER.sub(r"\1\2", text).strip()

    def rematch(self, text: str, tokens: Sequence[str]) -> list[list[int]]:
        """Return the positions of each token's characters, in text.lower() where case is folded.

        Raises TokenizerError if a token is not in the text, as when token_translate replaced it.
        """
        if self._do_lower_case:
            text = text.lower()
        plain, sources = "", list[int]()
        for position, character in enumerate(text):
            for folded in fold(character) if self._do_lower_case else character:
                if folded not in "\0\ufffd" and not is_control(folded):
                    plain += folded
                    sources.append(position)
        found: list[list[int]] = []
        at = 0
        for token in tokens:
            if self._is_special(token):
                found.append([])
                continue
            stem = self.stem(token)
            start = plain.find(stem, at)
            if start < 0:
                raise TokenizerError(f"substring not found: the token {token!r} is not in the text after position {at}")
            at = start + len(stem)
            found.append(sources[start:at])
        return found

    def _tokenize(self, text: str, pre_tokenize: bool = True) -> list[str]:
        return split_text(
            text,
            self._token_dict,
            lowercase=self._do_lower_case,
            word_limit=self._word_maxlen,
            pre_tokenize=self._pre_tokenize if pre_tokenize else None,
        )

    def _word_piece_tokenize(self, word: str) -> list[str]:
        return split_word(word, self._token_dict, self._word_maxlen)

    @staticmethod
    def stem(token: str) -> str:
        """Return a token without the '##' it may begin with."""
        return token[2:] if token[:2] == "##" else token

    @staticmethod
    def _is_space(ch: str) -> bool:
        return is_space(ch)

    @staticmethod
    def _is_punctuation(ch: str) -> bool:
        return is_punctuation(ch)

    @staticmethod
    def _cjk_punctuation() -> str:
        return _CJK_PUNCTUATION

    @staticmethod
    def _is_cjk_character(ch: str) -> bool:
        return is_chinese(ch)

    @staticmethod
    def _is_control(ch: str) -> bool:
        return is_control(ch)

    @staticmethod
    def _is_special(ch: str) -> bool:
        return bool(ch) and ch[0] == "[" and ch[-1] == "]"

    @staticmethod
    def _is_redundant(token: str) -> bool:
        return is_redundant(token)


class SpTokenizer(TokenizerBase):
    """A SentencePiece tokenizer.

    sp_model_path: the path of a .model file.   The rest as TokenizerBase.
    """

    def __init__(
        self,
        sp_model_path: StrPath,
        *,
        token_start: str | None = "[CLS]",
        token_end: str | None = "[SEP]",
        pre_tokenize: PreTokenize | None = None,
        token_translate: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(token_start, token_end, pre_tokenize, token_translate)
        self.sp_model: Any = load_model(os.fspath(sp_model_path))
        if self.sp_model.pad_id() >= 0:  # a model without one keeps the name [PAD]
            self._token_pad = self.sp_model.id_to_piece(self.sp_model.pad_id())
        self._token_unk = self.sp_model.id_to_piece(self.sp_model.unk_id())
        self._vocab_size = self.sp_model.get_piece_size()
        self._name_ids(self.sp_model.piece_to_id)

    def token_to_id(self, token: str) -> int:
        """Return the id of a token, the unknown id if there is no such token."""
        return int(self.sp_model.piece_to_id(token))

    def id_to_token(self, i: int) -> str:
        """Return the token of an id, '' for an id that the model does not have."""
        return str(self.sp_model.id_to_piece(int(i))) if i < self._vocab_size else ""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        tokens = [self._token_translate_inv.get(token) or token for token in self.ids_to_tokens(ids)]
        return str(self.sp_model.decode_pieces(tokens))

    def _tokenize(self, text: str) -> list[str]:
        if self._pre_tokenize is not None:
            text = " ".join(self._pre_tokenize(text))
        return [str(piece) for piece in self.sp_model.encode_as_pieces(text)]

    def _is_special(self, i: int) -> bool:
        return bool(self.sp_model.is_control(i) or self.sp_model.is_unknown(i) or self.sp_model.is_unused(i))

    def _is_decodable(self, i: int) -> bool:
        return i < self._vocab_size and not self._is_special(i)
