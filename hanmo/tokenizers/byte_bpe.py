"""Byte-level BPE: OpenAI's GPT-2 and its kin, RoBERTa with marks, from vocab.json and merges.txt.

Knows GPT-2's alphabet of bytes and the two files. Merging is done in Rust by Hugging Face `tokenizers`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from hanmo.errors import MissingFile, TokenizerError
from hanmo.files import errors_as, read_bytes, read_json
from hanmo.tokenizers.added import read_added
from hanmo.tokenizers.base import BaseTokenizer, Spans
from hanmo.tokenizers.protocol import SpecialIds
from hanmo.tokenizers.streams import BytesStream
from hanmo.tokenizers.vocab import MAX_VOCAB

__all__ = ["ByteBPE"]


def _alphabet() -> dict[str, int]:
    """Return GPT-2's character of each byte: itself where it is printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _alphabet()
_END, _ROBERTA = "<|endoftext|>", ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


class ByteBPE(BaseTokenizer):
    """A byte-level BPE tokenizer; every text has ids, and decode(encode(text).ids) == text.

    vocabulary: token → id.
    merges: pairs of tokens, the first to be merged first.
    start, end: the marks around a text, or end alone between documents; None for none.
    ends: whether encode adds it by default; GPT-2 does not.   added: id → token that is found before a text is split.
    Raises TokenizerError for ids that are not 0, 1, 2 …, for a vocabulary without one of the 256 bytes or without
    the end mark, and for a merge of tokens that it does not have.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        start: str | None = None,
        end: str | None = _END,
        ends: bool = False,
        added: Mapping[int, AddedToken] | None = None,
    ) -> None:
        added = added or {}
        self._ids = {**vocabulary, **{token.content: number for number, token in added.items()}}
        self._tokens = _in_order(self._ids)
        _check(self._ids, merges, end)
        named = {token: number for token, number in vocabulary.items() if not set(token) <= _BYTES.keys()}
        if end is not None:
            named[end] = self._ids[end]
        if start is None:
            special = SpecialIds(pad=self._ids.get("<|pad|>"), end=None if end is None else self._ids[end])
        else:
            pad, unk, mask = (self._ids.get(name) for name in ("<pad>", "<unk>", "<mask>"))
            special = SpecialIds(pad=pad, unk=unk, start=self._ids[start], end=self._ids[end or start], mask=mask)
        super().__init__(special, named, ends=ends, added=added, between=1 if start is None else 2)
        self._bytes = {
            number: token.encode() if number in added else bytes(_BYTES[character] for character in token)
            for token, number in self._ids.items()
            if token not in self._named
        }
        with errors_as(TokenizerError, "the vocabulary and its merges are not ones that byte-level BPE can use"):
            self._rust = RustTokenizer(BPE(vocab=dict(vocabulary), merges=list(merges)))
        self._rust.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)

    @classmethod
    def from_files(
        cls,
        vocabulary: str | Path,
        merges: str | Path,
        *,
        end: str | None = _END,
        ends: bool | None = None,
    ) -> "ByteBPE":
        """Read a vocab.json and a merges.txt, and the added tokens that files beside vocab.json list.

        A vocabulary with <s> and </s>, and without the end mark, is RoBERTa's: they stand around each text.
        Raises MissingFile, and TokenizerError for files that are no such thing.
        """
        ids = _read_vocabulary(Path(vocabulary))
        added = read_added(Path(vocabulary).parent, ids)
        pairs = _read_merges(Path(merges))
        if end != _END or end in ids or not {"<s>", "</s>"} <= ids.keys():
            return cls(ids, pairs, end=end, ends=bool(ends), added=added)
        # Where no file says otherwise <mask> takes the space before it, as in fairseq (hub_interface.py, fill_mask).
        marks = {
            ids[name]: AddedToken(name, special=True, normalized=False, lstrip=name == "<mask>")
            for name in _ROBERTA
            if name in ids
        }
        return cls(ids, pairs, start="<s>", end="</s>", ends=ends is not False, added=marks | added)

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self._tokens)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        return self._ids.get(token)

    def id_to_token(self, number: int) -> str:
        """Return the token of an id. Raises TokenizerError for an id that the vocabulary does not have."""
        return self._tokens[self._check_id(number)]

    def stream(self, *, special: bool = False) -> BytesStream:
        """Return a new incremental decoder."""
        return BytesStream(self._bytes_of, {i: name if special else "" for name, i in self._named.items()})

    def _bytes_of(self, number: int) -> bytes:
        return self._bytes[self._check_id(number)]

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def _plain_spans(self, text: str) -> tuple[list[int], Spans]:
        found = self._rust.encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets)


def _in_order(ids: Mapping[str, int]) -> list[str]:
    tokens = sorted(ids, key=lambda token: ids[token])
    for expected, token in enumerate(tokens):
        if ids[token] != expected:
            raise TokenizerError(
                f"the ids of the vocabulary are not 0, 1, 2 …: {token!r} has {ids[token]}, expected {expected}; "
                "the file is damaged or was edited"
            )
    return tokens


def _check(ids: Mapping[str, int], merges: Sequence[tuple[str, str]], end: str | None) -> None:
    missing = [byte for character, byte in _BYTES.items() if character not in ids]
    if missing:
        raise TokenizerError(
            f"the vocabulary lacks {len(missing)} of the 256 bytes, first {min(missing):#04x}; is it a byte-level one?"
        )
    if end is not None and end not in ids:
        raise TokenizerError(f"the vocabulary has no {end!r}; name the end mark it has, or None for none")
    for number, (left, right) in enumerate(merges, 1):
        if left not in ids or right not in ids or left + right not in ids:
            raise TokenizerError(
                f"merge {number} joins {left!r} and {right!r}, but the vocabulary has not all of "
                f"these and {left + right!r}; "
                "are vocab.json and merges.txt of one model?"
            )


def _read_vocabulary(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise MissingFile(f"there is no vocabulary at {path}; byte-level BPE needs a vocab.json beside merges.txt")
    found: dict[str, int] = read_json(path, error=TokenizerError, advice="; expected an object of token and id")
    if not all(type(number) is int for number in found.values()):
        raise TokenizerError(f"{path} is not an object of token and id, as a vocab.json is; name the right file")
    return found


def _read_merges(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise MissingFile(f"there are no merges at {path}; byte-level BPE needs a merges.txt beside vocab.json")
    try:
        lines = read_bytes(path, error=TokenizerError, limit=MAX_VOCAB).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 at byte {error.start}; download it again") from None
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2:
            raise TokenizerError(f"line {number} of {path} is {line!r}, expected two tokens with a space between")
        merges.append((pair[0], pair[1]))
    return merges
