"""The interface of all tokenizers, and what they share: marks, pairs, truncation, special tokens written in a text."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers.normalizers import Normalizer

from hanmo.errors import PromptError, TokenizerError
from hanmo.tokenizers.added import AddedSplitter
from hanmo.tokenizers.streams import TextStream, WindowStream

Spans = list[tuple[int, int]]
Cut = Literal["right", "left"]


@dataclass(frozen=True)
class SpecialIds:
    """The special ids; None where the vocabulary has none."""

    pad: int | None = None
    unk: int | None = None
    start: int | None = None
    end: int | None = None
    mask: int | None = None

    def known(self) -> frozenset[int]:
        """Return those that are not None."""
        return frozenset({self.pad, self.unk, self.start, self.end, self.mask} - {None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Encoding:
    """A text, or a pair of texts, as ids.

    ids: with the marks.   first: number of ids of the first text and its marks.
    tokens, offsets: None unless detail=True. An offset is (start, stop): text[start:stop] is the source of the token,
    in code points of the text of its segment; (0, 0) for the start and end marks.
    """

    ids: list[int]
    first: int
    tokens: list[str] | None = None
    offsets: list[tuple[int, int]] | None = None

    @property
    def segments(self) -> list[int]:
        """Segment ids: 0 for the first text and its marks, 1 for the second."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(ABC):
    """Text to ids, and ids to text at once or incrementally.

    vocab_size: number of ids, which run from 0 to vocab_size - 1.   special: the special ids.
    special_tokens: token → id; read in a text only with special=True.
    added: id → added token; those without the flag `special` are always read.   normalizer: see AddedSplitter.
    ends: whether marks are added by default.   between: number of end marks between the texts of a pair.
    A subclass defines _plain and stream, sets vocab_size, and sets tokens (in the order of their ids) and _ids or
    overrides what uses them.
    """

    vocab_size: int
    tokens: list[str]
    _ids: dict[str, int]

    def __init__(
        self,
        special: SpecialIds,
        special_tokens: Mapping[str, int],
        *,
        ends: bool,
        added: Mapping[int, AddedToken] | None = None,
        normalizer: Normalizer | None = None,
        between: int = 1,
    ) -> None:
        added = added or {}
        self.special, self.ends, self._between = special, ends, between
        self._named = {**special_tokens, **{token.content: number for number, token in added.items() if token.special}}
        marks = {number: AddedToken(name, special=True, normalized=False) for name, number in special_tokens.items()}
        always = {number: token for number, token in added.items() if not token.special}
        self._always = AddedSplitter(always, normalizer) if always else None
        self._asked = AddedSplitter({**marks, **added}, normalizer) if marks or added else None

    @abstractmethod
    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        """Return the ids of a text without marks and, if `detail`, the span of each."""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        return self._ids.get(token)

    def id_to_token(self, number: int) -> str:
        """Return the token of an id. Raises TokenizerError for an id outside the vocabulary."""
        return self.tokens[self._check_id(number)]

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        ends: bool | None = None,
        limit: int | None = None,
        cut: Cut = "right",
        special: bool = False,
        detail: bool = False,
    ) -> Encoding:
        """Return the ids of a text or of a pair of texts.

        ends: add the start and end marks; None is the tokenizer's default.
        limit: maximum number of ids; the longer text is truncated first, at its end (cut="right") or start ("left").
        special: read '[MASK]' and other special tokens written in the text as tokens, not as plain characters.
        detail: fill tokens and offsets, which is slower.
        Raises PromptError for a text with lone surrogates, or a limit too small for the marks.
        """
        texts = [text] if pair is None else [text, pair]
        parts = [self._part(each, special=special, detail=detail) for each in texts]
        add = self.ends if ends is None else ends
        start = [self.special.start] if add and self.special.start is not None else []
        end = [self.special.end] if add and self.special.end is not None else []
        after = [end] if pair is None else [end * self._between, end]
        if limit is not None:
            parts = _truncate(parts, limit, len(start) + sum(map(len, after)), cut)
        ids, spans = list(start), [(0, 0) for _ in start]
        first = len(start) + len(parts[0][0]) + len(after[0])
        for (part_ids, part_spans), marks in zip(parts, after, strict=True):
            ids += [*part_ids, *marks]
            spans += [*part_spans, *((0, 0) for _ in marks)]
        if not detail:
            return Encoding(ids, first)
        return Encoding(ids, first, [self.id_to_token(number) for number in ids], spans)

    def encode_batch(
        self,
        texts: Iterable[str | tuple[str, str]],
        *,
        ends: bool | None = None,
        limit: int | None = None,
        cut: Cut = "right",
        special: bool = False,
        detail: bool = False,
    ) -> list[Encoding]:
        """Encode several texts or pairs, each as `encode` does."""
        pairs = ((item, None) if isinstance(item, str) else item for item in texts)
        return [
            self.encode(text, pair, ends=ends, limit=limit, cut=cut, special=special, detail=detail)
            for text, pair in pairs
        ]

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text without marks, [tokens]; much faster than `encode` for corpora."""
        return np.array(self._part(text, special=False, detail=False)[0], np.int32)

    @abstractmethod
    def stream(self, *, special: bool = False) -> TextStream:
        """Return a new incremental decoder."""

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ids, with the special tokens written out if `special`, else without them.

        Raises TokenizerError for an id outside the vocabulary.
        """
        stream = self.stream(special=special)
        return "".join([stream.push(number) for number in ids]) + stream.flush()

    def _check_id(self, number: int) -> int:
        if not 0 <= number < self.vocab_size:
            raise TokenizerError(
                f"the id {number} is outside the vocabulary of {self.vocab_size} tokens (0 to {self.vocab_size - 1}); "
                "a model with more rows must be kept from choosing the rows without a token"
            )
        return int(number)

    def _first(self, *names: str) -> int | None:
        """Return the id of the first of these tokens that the vocabulary has."""
        return next((number for name in names if (number := self.token_to_id(name)) is not None), None)

    def _needed(self, token: str, where: str) -> int:
        number = self.token_to_id(token)
        if number is None:
            raise TokenizerError(
                f"{where} has no {token!r}; is it another model's? start= and end= name the marks, None for none"
            )
        return number

    def _shown(self, special: bool) -> dict[int, str]:
        """Return the text that decoding writes for each special id."""
        return {number: name if special else "" for name, number in self._named.items()}

    def _part(self, text: str, *, special: bool, detail: bool) -> tuple[list[int], Spans]:
        check_text(text)
        splitter = self._asked if special else self._always
        if splitter is None:
            return self._plain(text, detail=detail)
        ids: list[int] = []
        spans: Spans = []
        for number, start, stop in splitter.split(text):
            if number is None:
                chunk_ids, chunk_spans = self._plain(text[start:stop], detail=detail)
                ids += chunk_ids
                spans += [(first + start, last + start) for first, last in chunk_spans]
            else:
                ids.append(number)
                spans.append((start, stop))
        return ids, spans if detail else []


class WindowTokenizer(Tokenizer):
    """A tokenizer whose library decodes only complete lists of ids."""

    @abstractmethod
    def _read(self, ids: list[int]) -> str:
        """Return the text of ids that are not special."""

    def stream(self, *, special: bool = False) -> TextStream:
        return WindowStream(self._read, self._shown(special))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        if special:
            return super().decode(ids, special=True)
        named = set(self._named.values())
        return self._read([number for number in ids if number not in named])


def check_text(text: object, *, name: str = "the text") -> None:
    """Raise PromptError unless text is a str without lone surrogates."""
    if not isinstance(text, str):
        kind = "None" if text is None else type(text).__name__
        hint = "; decode bytes before" if isinstance(text, bytes | bytearray) else ""
        raise PromptError(f"{name} is {kind}; expected str{hint}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{name} holds the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, "
            "which is half a character; read the text with the right encoding, or remove it"
        ) from None


def _truncate(parts: list[tuple[list[int], Spans]], limit: int, marks: int, cut: Cut) -> list[tuple[list[int], Spans]]:
    """Truncate one or two texts: the longer loses first, of equals the first."""
    if cut not in ("right", "left"):
        raise PromptError(f"cut={cut!r} is no side of a text; give 'right' or 'left'")
    room = limit - marks
    if room < 0:
        raise PromptError(f"limit={limit} leaves no room for the {marks} start and end marks; give at least {marks}")
    first, second = (*(len(ids) for ids, _ in parts), 0)[:2]
    if first + second <= room:
        return parts
    first = min(first, max(room // 2, room - second))
    result = []
    for (ids, spans), keep in zip(parts, (first, room - first), strict=False):
        kept = slice(keep) if cut == "right" else slice(len(ids) - keep, None)
        result.append((ids[kept], spans[kept]))
    return result
