"""SentencePiece models: T5 and mT5, ALBERT, XLM-R and CamemBERT, and CPM, whose texts jieba splits first."""

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from hanmo.checkpoint.tf.protobuf import encode_bytes, encode_int, fields
from hanmo.errors import CorruptFile, MissingFile, TokenizerError
from hanmo.files import errors_as, read_bytes
from hanmo.tokenizers.protocol import Spans, SpecialIds, Tokenizer, WindowTokenizer
from hanmo.tokenizers.words import jieba_words

CPM_SPACE, CPM_NEWLINE = "\u2582", "\u2583"  # ▂ ▃: how CPM writes ' ' and '\n'
_FAIRSEQ = "sentencepiece.bpe.model"
_PIECES, _CONTROL = 1, 3  # of sentencepiece_model.proto: ModelProto's field, a piece's type
_TO_CPM = str.maketrans({" ": CPM_SPACE, "\n": CPM_NEWLINE})
_SENTINEL = re.compile(r"<extra_id_(\d{1,4})>")
_FROM_CPM = str.maketrans({" ": None, CPM_SPACE: " ", CPM_NEWLINE: "\n"})


class SentencePiece(WindowTokenizer):
    r"""A SentencePiece tokenizer.

    model: the path of a .model file, or its bytes.
    start, end: names of the marks, None for none; T5's are the default.   ends: whether encode adds them by default.
    between: number of end marks between the texts of a pair.
    extra_ids: number of T5's sentinels after the .model's pieces, in reverse order: <extra_id_0> has the last id. A
        .model that contains them (mT5's does, as '▁<extra_id_0>') needs none.
    cpm: split words by jieba, write ' ' as '▂' and '\n' as '▃' in them, and join them by spaces, which decode removes.
    Raises MissingFile; TokenizerError for another kind of file or missing marks; MissingExtra, on encoding, if cpm
    needs jieba and it is not installed.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        start: str | None = None,
        end: str | None = "</s>",
        ends: bool = True,
        extra_ids: int = 0,
        cpm: bool = False,
        between: int = 1,
    ) -> None:
        self._processor = load_model(model)
        self._pieces = int(self._processor.get_piece_size())
        self.vocab_size = self._pieces + extra_ids
        self.extra_ids, self.cpm = extra_ids, cpm
        self._unk = int(self._processor.unk_id())
        where = f"the SentencePiece model of {self.vocab_size} pieces"
        marks = [None if name is None else self._needed(name, where) for name in (start, end)]
        pad = int(self._processor.pad_id())
        special = SpecialIds(
            pad=pad if pad >= 0 else self._first("<pad>", "[PAD]"),
            unk=self._unk,
            start=marks[0],
            end=marks[1],
            mask=self._first("[MASK]", "<mask>"),
        )
        named = {i for i in range(self._pieces) if self._processor.is_control(i)} | special.known() - {self._unk}
        names = {self.id_to_token(i): i for i in named}
        names |= {f"<extra_id_{at}>": i for at, i in enumerate(sentinel_ids(self))}
        super().__init__(special, names, ends=ends, between=between)

    def token_to_id(self, token: str) -> int | None:
        if sentinel := _SENTINEL.fullmatch(token):
            if int(sentinel[1]) < self.extra_ids:
                return self.vocab_size - 1 - int(sentinel[1])
            token = "▁" + token if self._processor.piece_to_id(token) == self._unk else token
        number = int(self._processor.piece_to_id(token))
        return number if self._processor.id_to_piece(number) == token else None

    def id_to_token(self, number: int) -> str:
        if self._check_id(number) >= self._pieces:
            return f"<extra_id_{self.vocab_size - 1 - number}>"
        return str(self._processor.id_to_piece(number))

    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        sources = None
        if self.cpm:
            text, sources = _spaced(text)
        if not detail:
            return [int(number) for number in self._processor.encode(text)], []
        found = self._processor.encode_as_offset_mapping(text)
        ids = [int(number) for number in found["ids"]]
        spans = [(int(start), int(stop)) for start, stop in found["offsets"]]
        for at in range(len(ids) - 2, -1, -1):  # sentencepiece gives a character's span only to the last of its bytes
            if spans[at][0] == spans[at][1] and all(self._processor.is_byte(number) for number in ids[at : at + 2]):
                spans[at] = spans[at + 1]
        if sources is not None:
            ends = [sources[stop - 1] + 1 if stop > start else sources[start] for start, stop in spans]
            spans = [(sources[start], end) for (start, _), end in zip(spans, ends, strict=True)]
        return ids, spans

    def _read(self, ids: list[int]) -> str:
        text = str(self._processor.decode([self._check_id(number) for number in ids]))
        return text.translate(_FROM_CPM) if self.cpm else text


def _spaced(text: str) -> tuple[str, list[int]]:
    """Return the words of a text joined by spaces as for CPM, and the position in text of each character."""
    joined = ""
    sources: list[int] = []
    at = 0
    for word in jieba_words(text, hmm=True):
        if at:
            joined += " "
            sources.append(at)
        joined += word.translate(_TO_CPM)
        sources += range(at, at + len(word))
        at += len(word)
    return joined, [*sources, at]


def sentinel_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of T5's sentinels <extra_id_0>, <extra_id_1> …; [] if the vocabulary has none."""
    found: list[int] = []
    while (number := tokenizer.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(number)
    return found


def with_sentinels(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """Let the rows that an embedding has behind a T5's .model be its sentinels, up to 100, unless it has some."""
    if not isinstance(tokenizer, SentencePiece) or tokenizer.special.start is not None or sentinel_ids(tokenizer):
        return tokenizer
    end = None if tokenizer.special.end is None else tokenizer.id_to_token(tokenizer.special.end)
    model, spare = tokenizer._processor.serialized_model_proto(), max(0, rows - tokenizer.vocab_size)
    return SentencePiece(model, end=end, ends=tokenizer.ends, cpm=tokenizer.cpm, extra_ids=min(100, spare))


def as_fairseq(model: bytes, *, camembert: bool = False) -> bytes:
    """Reorder the pieces of a .model to XLM-R's ids: fairseq's marks first, <mask> last.

    camembert: with the marks that CamemBERT has besides.
    Raises TokenizerError for another kind of file, or a model that does not begin with <unk>, <s> and </s>.
    """
    try:
        parts = [(number, value) for number, value in fields(model) if isinstance(value, bytes)]
        pieces = [value for number, value in parts if number == _PIECES]
        names = [dict(fields(piece)).get(1) for piece in pieces[:3]]
    except CorruptFile as error:
        raise TokenizerError(f"{_FAIRSEQ} is no SentencePiece model ({error}); download it again") from None
    if names != [b"<unk>", b"<s>", b"</s>"]:
        raise TokenizerError(f"{_FAIRSEQ} begins with the pieces {names}; XLM-R's begins with <unk>, <s> and </s>")

    def mark(name: str) -> bytes:
        return encode_bytes(1, name.encode()) + encode_int(3, _CONTROL)

    unk, start, end = pieces[:3]
    first = [start, mark("<pad>"), end, unk]
    if camembert:
        first = [mark("<s>NOTUSED"), mark("<pad>"), mark("</s>NOTUSED"), unk, mark("<unk>NOTUSED"), start, end]
    ordered = [(_PIECES, piece) for piece in (*first, *pieces[3:], mark("<mask>"))]
    others = [part for part in parts if part[0] != _PIECES]
    return b"".join(encode_bytes(number, value) for number, value in (*ordered, *others))


def load_model(model: str | Path | bytes) -> SentencePieceProcessor:
    """Load a .model file, or its bytes. Raises MissingFile, and TokenizerError for another kind of file."""
    data, where = model, "the bytes given"
    if not isinstance(data, bytes):
        path = Path(data)
        if not path.is_file():
            raise MissingFile(
                f"there is no SentencePiece model at {path}; name a .model file, or the folder that holds one"
            )
        data, where = read_bytes(path, error=TokenizerError), str(path)
    if not data:
        raise TokenizerError(f"{where} is empty, expected a SentencePiece model; download it again")
    with errors_as(TokenizerError, f"{where} is no SentencePiece model", advice="; download it again"):
        processor = SentencePieceProcessor(model_proto=data)
        processor.id_to_piece(list(range(processor.get_piece_size())))  # fails on a piece that is not UTF-8
    return processor
