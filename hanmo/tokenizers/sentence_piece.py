"""SentencePiece models: T5 and mT5, ALBERT, and CPM with words cut by jieba first.

Knows the .model file through the sentencepiece package, and CPM's way with spaces. Knows no vocab.txt.
"""

from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from hanmo.errors import MissingFile, TokenizerError
from hanmo.files import errors_as, read_bytes
from hanmo.tokenizers.base import BaseTokenizer, Spans
from hanmo.tokenizers.protocol import SpecialIds
from hanmo.tokenizers.streams import WindowStream
from hanmo.tokenizers.words import jieba_words

__all__ = ["CPM_NEWLINE", "CPM_SPACE", "SentencePiece", "load_model"]

CPM_SPACE, CPM_NEWLINE = "\u2582", "\u2583"  # ▂ ▃: how CPM writes ' ' and '\n'
_TO_CPM = str.maketrans({" ": CPM_SPACE, "\n": CPM_NEWLINE})
_FROM_CPM = str.maketrans({" ": None, CPM_SPACE: " ", CPM_NEWLINE: "\n"})


class SentencePiece(BaseTokenizer):
    r"""A SentencePiece tokenizer.

    model: the path of a .model file, or its bytes.
    start, end: names of the marks, None for none; T5's are the default.
    ends: whether encode adds the marks by default.
    cpm: cut words by jieba, write ' ' as '▂' and '\n' as '▃' inside them, and part them by spaces, which decode undoes.
    Raises MissingFile, TokenizerError for a file that is no model or has not the marks named; MissingExtra, when a
    text is encoded, if cpm needs jieba and it is not installed.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        start: str | None = None,
        end: str | None = "</s>",
        ends: bool = True,
        cpm: bool = False,
    ) -> None:
        self._processor = load_model(model)
        self._size = int(self._processor.get_piece_size())
        self._cpm = cpm
        unk = int(self._processor.unk_id())
        self._unk = unk
        special = SpecialIds(
            pad=self._first("<pad>", "[PAD]", known=int(self._processor.pad_id())),
            unk=unk,
            start=None if start is None else self._mark(start),
            end=None if end is None else self._mark(end),
            mask=self._first("[MASK]", "<mask>"),
        )
        named = {i for i in range(self._size) if self._processor.is_control(i)}
        named |= special.known() - {unk}
        super().__init__(special, {self.id_to_token(i): i for i in named}, ends=ends)

    @property
    def vocab(self) -> int:
        """How many ids there are."""
        return self._size

    @property
    def cpm(self) -> bool:
        """Whether texts are cut and spaced as CPM does."""
        return self._cpm

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        number = int(self._processor.piece_to_id(token))
        return number if self._processor.id_to_piece(number) == token else None

    def id_to_token(self, number: int) -> str:
        """Return the token of an id. Raises TokenizerError for an id that the vocabulary does not have."""
        return str(self._processor.id_to_piece(self._check_id(number)))

    def stream(self, *, special: bool = False) -> WindowStream:
        """Return a new incremental decoder."""
        return WindowStream(self._read, {i: name if special else "" for name, i in self._named.items()})

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ids, in one go where no special token parts them; the same as by stream."""
        if special:
            return super().decode(ids, special=True)
        named = set(self._named.values())
        return self._read([number for number in ids if number not in named])

    def _plain_ids(self, text: str) -> list[int]:
        spaced = self._cut(text)[0] if self._cpm else text
        return [int(number) for number in self._processor.encode(spaced)]

    def _plain_spans(self, text: str) -> tuple[list[int], Spans]:
        spaced, sources = self._cut(text) if self._cpm else (text, None)
        found = self._processor.encode_as_offset_mapping(spaced)
        ids = [int(number) for number in found["ids"]]
        spans = _whole_characters(
            [(int(start), int(stop)) for start, stop in found["offsets"]],
            [bool(self._processor.is_byte(number)) for number in ids],
        )
        if sources is None:
            return ids, spans
        return ids, [
            (sources[start], sources[stop - 1] + 1 if stop > start else sources[start]) for start, stop in spans
        ]

    def _read(self, ids: list[int]) -> str:
        text = str(self._processor.decode([self._check_id(number) for number in ids]))
        return text.translate(_FROM_CPM) if self._cpm else text

    def _cut(self, text: str) -> tuple[str, list[int]]:
        """Return the words parted by spaces, and for each of its characters the position in text."""
        parts: list[str] = []
        sources: list[int] = []
        at = 0
        for word in jieba_words(text, hmm=True):
            if parts:
                parts.append(" ")
                sources.append(at)
            parts.append(word.translate(_TO_CPM))
            sources += range(at, at + len(word))
            at += len(word)
        return "".join(parts), [*sources, at]

    def _first(self, *names: str, known: int = -1) -> int | None:
        if known >= 0:
            return known
        return next((number for name in names if (number := self.token_to_id(name)) is not None), None)

    def _mark(self, name: str) -> int:
        number = self.token_to_id(name)
        if number is None:
            raise TokenizerError(
                f"the SentencePiece model of {self._size} pieces has no {name!r}; name the mark it "
                "has, or None for none"
            )
        return number


def load_model(model: str | Path | bytes) -> SentencePieceProcessor:
    """Load a .model file, or its bytes. Raises MissingFile, and TokenizerError for what is no such model."""
    if isinstance(model, bytes):
        data, where = model, "the bytes given"
    else:
        path = Path(model)
        if not path.is_file():
            raise MissingFile(
                f"there is no SentencePiece model at {path}; name a .model file, or the folder that holds one"
            )
        data, where = read_bytes(path, error=TokenizerError), str(path)
    processor = SentencePieceProcessor()
    with errors_as(TokenizerError, f"{where} is no SentencePiece model", advice="; download it again"):
        if not data or processor.load_from_serialized_proto(data) is False:
            raise TokenizerError(f"{where} is empty, expected a SentencePiece model; download it again")
        processor.id_to_piece(list(range(processor.get_piece_size())))  # fails on a piece that is not UTF-8
    return processor


def _whole_characters(spans: Spans, is_byte: list[bool]) -> Spans:
    """Give every byte of a character the span of the whole; sentencepiece gives it to the last byte alone."""
    result = list(spans)
    for index in range(len(spans) - 2, -1, -1):
        start, stop = spans[index]
        if is_byte[index] and is_byte[index + 1] and start == stop:
            result[index] = result[index + 1]
    return result
