"""Byte-level BPE from vocab.json and merges.txt: GPT-2, and RoBERTa with marks. Hugging Face `tokenizers` merges."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from hanmo.errors import MissingFile, TokenizerError
from hanmo.files import errors_as, read_bytes, read_json
from hanmo.tokenizers.added import read_added
from hanmo.tokenizers.protocol import Spans, SpecialIds, Tokenizer
from hanmo.tokenizers.streams import BytesStream
from hanmo.tokenizers.vocab import MAX_VOCAB, tokens_in_order


def _alphabet() -> dict[str, int]:
    """Return GPT-2's character of each byte: itself where it is printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _alphabet()
_END, _ROBERTA = "<|endoftext|>", ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


class ByteBPE(Tokenizer):
    """A byte-level BPE tokenizer; decode(encode(text).ids) == text for every text.

    vocabulary: token → id.   merges: pairs of tokens, by priority.
    start, end: the marks around a text, or end alone between documents; None for none.
    ends: whether encode adds them by default; GPT-2 does not.   added: id → added token.
    Raises TokenizerError for ids that are not 0, 1, 2 …, for a vocabulary that lacks one of the 256 bytes or the end
    mark, and for a merge of tokens that it lacks.
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
        self.tokens = tokens_in_order(self._ids, "the vocabulary")
        self.vocab_size = len(self.tokens)
        if missing := [byte for character, byte in _BYTES.items() if character not in self._ids]:
            raise TokenizerError(
                f"the vocabulary lacks {len(missing)} of the 256 bytes, first {min(missing):#04x}; "
                "is it a byte-level one?"
            )
        for number, (left, right) in enumerate(merges, 1):
            if not {left, right, left + right} <= self._ids.keys():
                raise TokenizerError(
                    f"merge {number} joins {left!r} and {right!r}, but the vocabulary has not all of these and "
                    f"{left + right!r}; are vocab.json and merges.txt of one model?"
                )
        marks = [None if name is None else self._needed(name, "the vocabulary") for name in (start, end)]
        named = {token: number for token, number in vocabulary.items() if not set(token) <= _BYTES.keys()}
        if end is not None:
            named[end] = self._ids[end]
        if start is None:
            special = SpecialIds(pad=self._ids.get("<|pad|>"), end=marks[1])
        else:
            pad, unk, mask = (self._ids.get(name) for name in ("<pad>", "<unk>", "<mask>"))
            special = SpecialIds(pad, unk, marks[0], marks[1], mask)
        super().__init__(special, named, ends=ends, added=added, between=1 if start is None else 2)
        self._bytes = {
            number: token.encode() if number in added else bytes(_BYTES[character] for character in token)
            for token, number in self._ids.items()
            if token not in self._named
        }
        with errors_as(TokenizerError, "the vocabulary and its merges cannot be used by byte-level BPE"):
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
        """Read a vocab.json and a merges.txt, and the added tokens listed in files beside vocab.json.

        A vocabulary with <s> and </s>, and without the end mark, is RoBERTa's: these are its marks.
        Raises MissingFile, and TokenizerError for files of another content.
        """
        vocabulary, merges = Path(vocabulary), Path(merges)
        for path, what in ((vocabulary, "is no vocabulary"), (merges, "are no merges")):
            if not path.is_file():
                raise MissingFile(f"there {what} at {path}; byte-level BPE needs a vocab.json beside a merges.txt")
        ids = read_json(vocabulary, error=TokenizerError, advice="; expected an object of token and id")
        if not all(type(number) is int for number in ids.values()):
            raise TokenizerError(
                f"{vocabulary} is not an object of token and id, as a vocab.json is; name the right file"
            )
        added, pairs = read_added(vocabulary.parent, ids), _read_merges(merges)
        if end != _END or end in ids or not {"<s>", "</s>"} <= ids.keys():
            return cls(ids, pairs, end=end, ends=bool(ends), added=added)
        # By default <mask> includes the space before it, as in fairseq (hub_interface.py, fill_mask).
        marks = {
            ids[name]: AddedToken(name, special=True, normalized=False, lstrip=name == "<mask>")
            for name in _ROBERTA
            if name in ids
        }
        return cls(ids, pairs, start="<s>", end="</s>", ends=ends is not False, added=marks | added)

    def stream(self, *, special: bool = False) -> BytesStream:
        return BytesStream(lambda number: self._bytes[self._check_id(number)], self._shown(special))

    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        found = self._rust.encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets) if detail else []


def _read_merges(path: Path) -> list[tuple[str, str]]:
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
