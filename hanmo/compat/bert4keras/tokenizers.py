"""bert4keras.tokenizers: Tokenizer, SpTokenizer, load_vocab, save_vocab, with the arguments and results of 0.11.5.

Where bert4keras crashed (an unknown word without [UNK], a decoded text that begins with '##') there is a result, or an
error that says what to do.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanmo.checkpoint.staged import atomic_path
from hanmo.compat.bert4keras.snippets import truncate_sequences
from hanmo.errors import MissingFile, TokenizerError, Unsupported
from hanmo.tokenizers.bert_rules import fold, is_chinese, is_control, is_punctuation, is_space, split_text, split_word
from hanmo.tokenizers.sentence_piece import load_model

__all__ = ["SpTokenizer", "Tokenizer", "TokenizerBase", "load_vocab", "save_vocab"]

StrPath = str | os.PathLike[str]
PreTokenize = Callable[[str], Iterable[str]]

# bert4keras's own choice; a space after one of these is removed.
_CJK_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
)


def load_vocab(
    dict_path: StrPath, encoding: str = "utf-8", simplified: bool = False, startswith: Sequence[str] | None = None
) -> Any:
    """Read a vocab.txt: the first field of every line → its id. A repeated token keeps its later place and shifts ids.

    simplified: drop the tokens that no text can contain, and return (vocabulary, keep_tokens), the latter the old ids
    of the tokens kept.   startswith: tokens that are always kept, and come first.
    """
    if not Path(dict_path).is_file():
        raise MissingFile(f"there is no vocabulary at {dict_path}; set dict_path to the model's vocab.txt")
    ids: dict[str, int] = {}
    try:
        with open(dict_path, encoding=encoding) as lines:
            for line in lines:
                fields = line.split()
                ids[fields[0] if fields else ""] = len(ids)
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{dict_path} is not {encoding} at byte {error.start}; give its encoding to load_vocab"
        ) from None
    if not simplified:
        return ids
    first = list(dict.fromkeys(startswith or []))
    missing = [token for token in first if token not in ids]
    if missing:
        raise TokenizerError(f"startswith names {missing[0]!r}, which {dict_path} does not hold; remove it")
    rest = (token for token in sorted(ids, key=ids.__getitem__) if token not in first and not _is_redundant(token))
    kept = [*first, *rest]
    return {token: number for number, token in enumerate(kept)}, [ids[token] for token in kept]


def save_vocab(dict_path: StrPath, token_dict: Mapping[str, int], encoding: str = "utf-8") -> None:
    """Write a vocab.txt in the order of the ids, completely or not at all."""
    with atomic_path(Path(dict_path)) as made:
        made.write_text("".join(f"{token}\n" for token in sorted(token_dict, key=token_dict.__getitem__)), encoding)


def _is_redundant(token: str) -> bool:
    """Tell whether no text gives a token: it is longer than a character and contains one that is always split off."""
    return len(token) > 1 and any(is_chinese(ch) or is_punctuation(ch) for ch in token.removeprefix("##"))


class TokenizerBase:
    """Base class; a subclass defines _tokenize, token_to_id, id_to_token and decode.

    token_start, token_end: tokens around a text, None for none.   pre_tokenize: splits a text into words first.
    token_translate: token → its replacement.
    """

    def __init__(
        self,
        token_start: str | None = "[CLS]",
        token_end: str | None = "[SEP]",
        pre_tokenize: PreTokenize | None = None,
        token_translate: Mapping[str, str] | None = None,
    ) -> None:
        self._token_pad, self._token_unk, self._token_mask = "[PAD]", "[UNK]", "[MASK]"
        self._token_start, self._token_end = token_start, token_end
        self._pre_tokenize = pre_tokenize
        self._token_translate = token_translate or {}
        self._token_translate_inv = {new: old for old, new in self._token_translate.items()}

    def __getattr__(self, name: str) -> Any:
        if name in ("_tokenize", "token_to_id", "id_to_token", "decode"):
            raise Unsupported(f"{type(self).__name__} has no {name}; write one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def tokenize(self, text: str, maxlen: int | None = None) -> list[str]:
        tokens = [self._token_translate.get(token) or token for token in self._tokenize(text)]
        if self._token_start is not None:
            tokens.insert(0, self._token_start)
        if self._token_end is not None:
            tokens.append(self._token_end)
        if maxlen is not None:
            truncate_sequences(maxlen, -1 - (self._token_end is not None), tokens)
        return tokens

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        return [self.token_to_id(token) for token in tokens]

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return [self.id_to_token(i) for i in ids]

    def encode(
        self,
        first_text: str | list[str],
        second_text: str | list[str] | None = None,
        maxlen: int | None = None,
        pattern: str = "S*E*E",
        truncate_from: str | int = "right",
    ) -> tuple[list[int], list[int]]:
        """Return the ids and segment ids of a text or a pair; lists are tokens, which maxlen truncates in place.

        pattern: "S*E*E" drops the second text's start token, "S*ES*E" keeps it.
        truncate_from: "right", "left", or the index that is removed until maxlen is reached.
        """
        first = self.tokenize(first_text) if isinstance(first_text, str) else first_text
        second = self.tokenize(second_text) if isinstance(second_text, str) else second_text
        drops_start = second is not None and pattern == "S*E*E"
        if maxlen is not None:
            indices = {"right": -1 - (self._token_end is not None), "left": int(self._token_start is not None)}
            index = indices[truncate_from] if truncate_from in ("right", "left") else int(truncate_from)
            truncate_sequences(maxlen + drops_start, index, first, second or [])
        ids, second_ids = self.tokens_to_ids(first), list[int]()
        if second is not None:
            second_ids = self.tokens_to_ids(second[bool(drops_start and self._token_start) :])
        return ids + second_ids, [0] * len(ids) + [1] * len(second_ids)

    def _name_ids(self, id_of: Callable[[str], int | None]) -> None:
        """Set _token_pad_id and so on, where the vocabulary has the token."""
        for name in ("pad", "unk", "mask", "start", "end"):
            token = getattr(self, f"_token_{name}")
            number = None if token is None else id_of(token)
            if number is not None:
                setattr(self, f"_token_{name}_id", number)


class Tokenizer(TokenizerBase):
    """BERT's tokenizer.

    token_dict: the path of a vocab.txt, or token → id.   do_lower_case: fold case and accents.
    word_maxlen: longer words are not split.   Keyword arguments: see TokenizerBase.
    """

    def __init__(
        self, token_dict: StrPath | dict[str, int], do_lower_case: bool = False, word_maxlen: int = 200, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._token_dict = token_dict if isinstance(token_dict, dict) else load_vocab(token_dict)
        self._do_lower_case, self._word_maxlen = do_lower_case, word_maxlen
        self._token_dict_inv = {number: token for token, number in self._token_dict.items()}
        self._vocab_size = len(self._token_dict)
        self._name_ids(self._token_dict.get)

    def token_to_id(self, token: str) -> int:
        number = self._token_dict.get(token, getattr(self, "_token_unk_id", None))
        if number is None:
            raise TokenizerError(
                f"{token!r} is not in the vocabulary of {self._vocab_size} tokens, and neither is {self._token_unk!r}; "
                "name it in startswith when the vocabulary is simplified"
            )
        return number

    def id_to_token(self, i: int) -> str:
        if i not in self._token_dict_inv:
            raise TokenizerError(f"the id {i} has no token in the vocabulary of {self._vocab_size} tokens")
        return self._token_dict_inv[i]

    def decode(self, ids: Sequence[int] | None, tokens: Sequence[str] | None = None) -> str:
        """Return the text of ids, or of tokens if they are given, with bert4keras's spaces."""
        text = ""
        for token in tokens or self.ids_to_tokens(ids if ids is not None else []):
            if self._is_special(token):
                continue
            if token[:2] == "##":
                text += token[2:]
            elif len(token) == 1 and is_chinese(token):
                text += token
            elif len(token) == 1 and is_punctuation(token):
                text += token + " "
            else:
                text += token if text and is_chinese(text[-1]) else " " + token
        text = re.sub(" +", " ", text)
        text = re.sub("' (re|m|s|t|ve|d|ll) ", r"'\1 ", text)
        text = re.sub(f"([{re.escape(_CJK_PUNCTUATION + '+-/={(<[')}]) ", r"\1", text)
        return re.sub(r"(\d\.) (\d)", r"\1\2", text).strip()

    def rematch(self, text: str, tokens: Sequence[str]) -> list[list[int]]:
        """Return the positions of each token's characters, in text.lower() if case is folded."""
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
            stem = "" if self._is_special(token) else self.stem(token)
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
        return token.removeprefix("##")

    @staticmethod
    def _is_special(ch: str) -> bool:
        return bool(ch) and ch[0] == "[" and ch[-1] == "]"

    _is_space = staticmethod(is_space)
    _is_punctuation = staticmethod(is_punctuation)
    _is_cjk_character = staticmethod(is_chinese)
    _is_control = staticmethod(is_control)
    _is_redundant = staticmethod(_is_redundant)
    _cjk_punctuation = staticmethod(lambda: _CJK_PUNCTUATION)


class SpTokenizer(TokenizerBase):
    """A SentencePiece tokenizer.

    sp_model_path: the path of a .model file.   Keyword arguments: see TokenizerBase.
    """

    def __init__(self, sp_model_path: StrPath, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sp_model: Any = load_model(os.fspath(sp_model_path))
        if self.sp_model.pad_id() >= 0:  # otherwise it stays [PAD]
            self._token_pad = self.sp_model.id_to_piece(self.sp_model.pad_id())
        self._token_unk = self.sp_model.id_to_piece(self.sp_model.unk_id())
        self._vocab_size = self.sp_model.get_piece_size()
        self._name_ids(self.sp_model.piece_to_id)

    def token_to_id(self, token: str) -> int:
        return int(self.sp_model.piece_to_id(token))

    def id_to_token(self, i: int) -> str:
        """Return the token of an id, '' for an id that the model does not have."""
        return str(self.sp_model.id_to_piece(int(i))) if i < self._vocab_size else ""

    def decode(self, ids: Sequence[int]) -> str:
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
