"""Tokenizers for every kind of vocabulary file. No module here imports torch."""

from hanmo.tokenizers.byte_bpe import ByteBPE
from hanmo.tokenizers.load import load_tokenizer
from hanmo.tokenizers.lossless import Lossless
from hanmo.tokenizers.prompt import encode_prompt, special_tokens_in
from hanmo.tokenizers.protocol import Encoding, SpecialIds, Tokenizer
from hanmo.tokenizers.sentence_piece import SentencePiece
from hanmo.tokenizers.streams import TextStream
from hanmo.tokenizers.tokenizer_json import TokenizerJson
from hanmo.tokenizers.vocab import read_vocab, write_vocab
from hanmo.tokenizers.wordpiece import WordPiece

__all__ = [
    "ByteBPE",
    "Encoding",
    "Lossless",
    "SentencePiece",
    "SpecialIds",
    "TextStream",
    "Tokenizer",
    "TokenizerJson",
    "WordPiece",
    "encode_prompt",
    "load_tokenizer",
    "read_vocab",
    "special_tokens_in",
    "write_vocab",
]
