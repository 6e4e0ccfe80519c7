"""What all tokenizers share: marks around one text or two, truncation, special tokens written in the text.

Knows ids and their order. Each tokenizer adds how a plain text is split and how ids are read.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers.normalizers import Normalizer

from hanmo.errors import PromptError, TokenizerError
from hanmo.tokenizers.added import AddedSplitter
from hanmo.tokenizers.protocol import Cut, Encoding, SpecialIds, TextStream, check_text

__all__ = ["BaseTokenizer", "Spans"]

Spans = list[tuple[int, int]]


class BaseTokenizer(ABC):
    """Everything of the Tokenizer protocol but the vocabulary itself.

    named: the special tokens of the vocabulary, each with its id; read in a text only when asked for (special=True).
    added: id → token that stands outside the vocabulary's rules of splitting; one without the flag `special` is always
        read.   normalizer: what a text goes through before such tokens are looked for; see AddedSplitter.
    ends: whether marks are added by default.   between: how many end marks part the texts of a pair; RoBERTa has two.
    """

    def __init__(
        self,
        special: SpecialIds,
        named: Mapping[str, int],
        *,
        ends: bool,
        added: Mapping[int, AddedToken] | None = None,
        normalizer: Normalizer | None = None,
        between: int = 1,
    ) -> None:
        added = added or {}
        self._between = between
        self._special = special
        self._ends = ends
        self._named = {**named, **{token.content: number for number, token in added.items() if token.special}}
        marks = {number: AddedToken(name, special=True, normalized=False) for name, number in named.items()}
        always = {number: token for number, token in added.items() if not token.special}
        self._always = AddedSplitter(always, normalizer) if always else None
        self._asked = AddedSplitter({**marks, **added}, normalizer) if marks or added else None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are."""

    @property
    def special(self) -> SpecialIds:
        """The ids with a meaning of their own."""
        return self._special

    @property
    def ends(self) -> bool:
        """Whether encode adds the start and end marks when it is not told."""
        return self._ends

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""

    @abstractmethod
    def id_to_token(self, number: int) -> str:
        """Return the token of an id."""

    @abstractmethod
    def stream(self, *, special: bool = False) -> TextStream:
        """Return a new incremental decoder."""

    @abstractmethod
    def _plain_ids(self, text: str) -> list[int]:
        """Return the ids of a text without marks."""

    @abstractmethod
    def _plain_spans(self, text: str) -> tuple[list[int], Spans]:
        """Return the ids of a text without marks, and where each comes from."""

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ids; special: write the special tokens out instead of leaving them away."""
        stream = self.stream(special=special)
        return "".join([stream.push(number) for number in ids]) + stream.flush()

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
        """Return the ids of a text or of a pair, as the protocol says."""
        texts = [text] if pair is None else [text, pair]
        parts = [self._part(each, special=special, detail=detail) for each in texts]
        add = self._ends if ends is None else ends
        start = [self._special.start] if add and self._special.start is not None else []
        end = [self._special.end] if add and self._special.end is not None else []
        after = [end] if pair is None else [end * self._between, end]
        if limit is not None:
            if cut not in ("right", "left"):
                raise PromptError(f"cut={cut!r} is no side of a text; give 'right' or 'left'")
            lengths = [len(ids) for ids, _ in parts]
            kept = _kept(lengths, limit, marks=len(start) + sum(map(len, after)))
            parts = [_cut(part, keep, cut) for part, keep in zip(parts, kept, strict=True)]
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
        """Encode many texts or pairs; the same as one by one."""
        pairs = ((item, None) if isinstance(item, str) else item for item in texts)
        return [
            self.encode(text, pair, ends=ends, limit=limit, cut=cut, special=special, detail=detail)
            for text, pair in pairs
        ]

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text without marks, [tokens]."""
        return np.array(self._part(text, special=False, detail=False)[0], np.int32)

    def _check_id(self, number: int) -> int:
        if not 0 <= number < self.vocab_size:
            raise TokenizerError(
                f"the id {number} is outside the vocabulary of {self.vocab_size} tokens (0 to {self.vocab_size - 1}); "
                "a model with more rows must be kept from choosing the rows without a token"
            )
        return int(number)

    def _part(self, text: str, *, special: bool, detail: bool) -> tuple[list[int], Spans]:
        check_text(text)
        splitter = self._asked if special else self._always
        if splitter is None:
            return self._plain_spans(text) if detail else (self._plain_ids(text), [])
        ids: list[int] = []
        spans: Spans = []
        for number, start, stop in splitter.split(text):
            if number is not None:
                ids.append(number)
                spans.append((start, stop))
            elif detail:
                chunk_ids, chunk_spans = self._plain_spans(text[start:stop])
                ids += chunk_ids
                spans += [(first + start, last + start) for first, last in chunk_spans]
            else:
                ids += self._plain_ids(text[start:stop])
        return ids, spans if detail else []


def _kept(lengths: list[int], limit: int, *, marks: int) -> list[int]:
    """Return how much of each text stays: the longer loses first, of equals the first."""
    room = limit - marks
    if room < 0:
        raise PromptError(f"limit={limit} leaves no room for the {marks} start and end marks; give at least {marks}")
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    if 2 * min(first, second) <= room:  # the shorter stays whole
        return [first, room - first] if first < second else [room - second, second]
    return [room // 2, room - room // 2]


def _cut(part: tuple[list[int], Spans], keep: int, cut: Cut) -> tuple[list[int], Spans]:
    ids, spans = part
    if cut == "right":
        return ids[:keep], spans[:keep]
    first = len(ids) - keep
    return ids[first:], spans[first:] if spans else spans
