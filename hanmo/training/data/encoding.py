"""A tokenizer as packing needs it: ids as small arrays, the mark after a document, what the vocabulary lacks.

Knows every tokenizer of hanmo.tokenizers by its protocol. Knows no files of data, no windows and no model.
"""

from collections.abc import Mapping
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import TokenizerError
from hanmo.tokenizers.codes import codes_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.wordpiece import WordPiece

__all__ = ["TokenEncoder"]


class TokenEncoder:
    """What packing asks of a tokenizer; it can be sent to other processes.

    separator: the token put after every document. None takes the vocabulary's end mark ([EOS], </s>, <|endoftext|>);
    BERT's [SEP] is put only where it is asked for, because GPT2_ML was trained without any mark.
    sha256: digest of the tokens, a newline after each, and of whether texts are cut into words; packed data carries it.
    end: id after a document, or None.
    unknown: id of [UNK], or None.   dtype: uint16 where the vocabulary allows it, else uint32.
    Raises TokenizerError if the vocabulary does not hold the separator.
    """

    def __init__(self, tokenizer: Tokenizer, *, separator: str | None = None) -> None:
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)]
        cut = ["cut into words"] if isinstance(tokenizer, WordPiece) and tokenizer.pre_tokenizes else []
        self.sha256 = sha256("".join(token + "\n" for token in [*tokens, *cut]).encode()).hexdigest()
        self.unknown = tokenizer.special.unk
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self.end = tokenizer.special.end
        if separator is not None:
            self.end = tokenizer.token_to_id(separator)
            if self.end is None:
                raise TokenizerError(
                    f"the separator is {separator!r}, which is none of the vocabulary's {self.vocab_size:,} tokens; "
                    "name one of them, such as [SEP]"
                )
        elif self.end is not None and tokens[self.end] == "[SEP]":
            self.end = None
        self._judged: dict[int, bool] = {}  # code point: whether it is outside the vocabulary

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Return the ids of text without marks, [tokens]."""
        return self.tokenizer.encode_array(text).astype(self.dtype)

    def outside(self, text: str) -> Mapping[str, int]:
        """Count the characters of text that by themselves become [UNK]."""
        if self.unknown is None:
            return {}
        counts = np.bincount(codes_of(text))
        found = {}
        for code in np.flatnonzero(counts).tolist():
            if code not in self._judged:
                self._judged[code] = self.unknown in self.tokenizer.encode_array(chr(code))
            if self._judged[code]:
                found[chr(code)] = int(counts[code])
        return found
