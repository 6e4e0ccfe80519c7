"""A WordPiece or Lossless tokenizer as one of Hugging Face `tokenizers`, with the same ids and the same decoded text.

Their decoders know single tokens only: every token gets a mark of where it begins, the tokens are joined, and regular
expressions turn marks into the spaces that `WordStream` writes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece as RustWordPiece
from tokenizers.processors import TemplateProcessing

from hanmo.config import ModelConfig
from hanmo.tokenizers.lossless import DROPPED, NEWLINE, SPACE_TOKEN, Lossless
from hanmo.tokenizers.prompt import marks_of
from hanmo.tokenizers.wordpiece import SPACED_AFTER, WordPiece

__all__ = ["rust_tokenizer"]

_BEGIN = "\ufdd0"  # a noncharacter, in no vocabulary
_REPEATED = "\ufdd1"  # a noncharacter: ends all but the last of a repeated token
_IMPLIED = "\uffff"  # a noncharacter: a space that Lossless leaves out
_ALPHANUMERIC = "[0-9A-Za-z]"
_CHINESE = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
_WORD = rf"[^\p{{P}}$+<=>^`|~\s{_BEGIN}{_CHINESE.encode().decode('unicode_escape')}]"
_AFTER_MARK = "|".join(f"(?<={_WORD}{begin}[{''.join(sorted(SPACED_AFTER))}])" for begin in ("", _BEGIN))


def rust_tokenizer(config: ModelConfig, tokenizer: WordPiece | Lossless) -> Tokenizer:
    """Return the tokenizer with the marks that the model expects around texts; it cannot split texts by jieba."""
    made = _lossless(tokenizer) if isinstance(tokenizer, Lossless) else _word_piece(tokenizer)
    made.add_special_tokens([tokenizer.id_to_token(number) for number in sorted(tokenizer.special.known())])
    if isinstance(tokenizer, WordPiece):
        made.add_tokens(list(tokenizer.added.values()))
    marks = marks_of(config, tokenizer)
    before, after = marks.before, marks.after
    if not config.can_generate:
        before, after = ((number,) if number is not None else () for number in _ends(tokenizer))
    if before or after:
        made.post_processor = _template(tokenizer, before, after)
    return made


def _ends(tokenizer: WordPiece | Lossless) -> tuple[int | None, int | None]:
    return tokenizer.special.start, tokenizer.special.end


def _template(tokenizer: WordPiece | Lossless, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    start, end = ([tokenizer.id_to_token(number) for number in ids] for ids in (before, after))
    pair = [*start, "$A", *end, "$B:1", *(f"{token}:1" for token in end)]
    ids = [(tokenizer.id_to_token(number), number) for number in {*before, *after}]
    return TemplateProcessing(single=[*start, "$A", *end], pair=pair, special_tokens=ids)


def _word_piece(tokenizer: WordPiece) -> Tokenizer:
    vocabulary = _vocabulary(tokenizer.tokens)
    made = Tokenizer(RustWordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=tokenizer.word_limit))
    folds = tokenizer.lowercase
    made.normalizer = normalizers.BertNormalizer(lowercase=folds, strip_accents=folds)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    english = rf"({_AFTER_MARK}){_BEGIN}(?=[A-Za-z])"
    added = [token.content for token in tokenizer.added.values() if token.normalized]
    written = {token: text for text in added if (token := made.normalizer.normalize_str(text)) not in vocabulary}
    made.decoder = _decoder(rf"(?<={_WORD}){_BEGIN}(?={_WORD})", english, written=written)
    return made


def _lossless(tokenizer: Lossless) -> Tokenizer:
    named = {NEWLINE: "\n", SPACE_TOKEN: " "}
    vocabulary = _vocabulary([named.get(token, token) for token in tokenizer.tokens])
    made = Tokenizer(RustWordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1 << 30))
    dropped = "".join(f"\\x{{{ord(character):x}}}" for character in sorted(DROPPED - {"\r"}))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex("\r\n?"), "\n"),
            normalizers.Replace(Regex(f"[{dropped}]"), ""),
            normalizers.Replace(Regex(f"(?<={_ALPHANUMERIC}) (?={_ALPHANUMERIC})"), _IMPLIED),
            normalizers.Replace(Regex(r"[\t\p{Zs}]"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_IMPLIED, "removed"),
            pre_tokenizers.Split(Regex(rf"{_ALPHANUMERIC}+|[\s\S]"), "isolated"),
        ]
    )
    made.decoder = _decoder(rf"(?<={_ALPHANUMERIC}){_BEGIN}(?={_ALPHANUMERIC})")
    return made


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    """Return token → id: a repeated token's last, as texts have it; its earlier ids get other names, for decoding."""
    found: dict[str, int] = {}
    for number in reversed(range(len(tokens))):
        token = tokens[number]
        while token in found:
            token += _REPEATED
        found[token] = number
    return found


def _decoder(*spaced: str, written: Mapping[str, str] | None = None) -> Any:
    """Make a decoder that writes a space at the marks that one of these expressions matches.

    written: token → its text, for added tokens that `tokenizers` holds normalized.
    """
    texts = [decoders.Replace(Regex(f"^{re.escape(token)}$"), text) for token, text in (written or {}).items()]
    replaced = [decoders.Replace(Regex(pattern), " ") for pattern in spaced]
    begin = [decoders.Replace(Regex("^(?!##)"), _BEGIN), decoders.Replace(Regex("^##"), "")]
    begin.append(decoders.Replace(_REPEATED, ""))
    return decoders.Sequence([*texts, *begin, decoders.Fuse(), *replaced, decoders.Replace(_BEGIN, "")])
