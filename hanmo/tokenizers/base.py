"""What all tokenizers share: marks, pairs, truncation, special tokens written in a text."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers.normalizers import Normalizer

from hanmo.errors import PromptError, TokenizerError
from hanmo.tokenizers.added import AddedSplitter
from hanmo.tokenizers.protocol import Cut, Encoding, SpecialIds, Tokenizer, check_text
from hanmo.tokenizers.streams import WindowStream

__all__ = ["BaseTokenizer", "Spans", "WindowTokenizer"]

Spans = list[tuple[int, int]]


class BaseTokenizer(Tokenizer, ABC):
    """All of `Tokenizer` but splitting (`_plain`) and decoding (`stream`).

    special_tokens: token → id; read in a text only with special=True.
    added: id → added token; those without the flag `special` are always read.   normalizer: see AddedSplitter.
    ends: whether marks are added by default.   between: number of end marks between the texts of a pair.
    A subclass sets _tokens (in the order of their ids) and _ids, or overrides what uses them.
    """

    _tokens: list[str]
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
        self._between = between
        self._special = special
        self._ends = ends
        self._named = {**special_tokens, **{token.content: number for number, token in added.items() if token.special}}
        marks = {number: AddedToken(name, special=True, normalized=False) for name, number in special_tokens.items()}
        always = {number: token for number, token in added.items() if not token.special}
        self._always = AddedSplitter(always, normalizer) if always else None
        self._asked = AddedSplitter({**marks, **added}, normalizer) if marks or added else None

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._tokens)

    @property
    def special(self) -> SpecialIds:
        """The special ids."""
        return self._special

    @property
    def ends(self) -> bool:
        """Whether encode adds the start and end marks by default."""
        return self._ends

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        return self._ids.get(token)

    def id_to_token(self, number: int) -> str:
        """Return the token of an id. Raises TokenizerError for an id outside the vocabulary."""
        return self._tokens[self._check_id(number)]

    @abstractmethod
    def _plain(self, text: str, *, detail: bool) -> tuple[list[int], Spans]:
        """Return the ids of a text without marks and, if `detail`, the span of each."""

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
        """Return the ids of a text or of a pair of texts; see `Tokenizer.encode`."""
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

    def _first(self, *names: str) -> int | None:
        """Return the id of the first of these tokens that the vocabulary has."""
        return next((number for name in names if (number := self.token_to_id(name)) is not None), None)

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


class WindowTokenizer(BaseTokenizer):
    """A tokenizer whose library decodes only complete lists of ids."""

    @abstractmethod
    def _read(self, ids: list[int]) -> str:
        """Return the text of ids that are not special."""

    def stream(self, *, special: bool = False) -> WindowStream:
        """Return a new incremental decoder."""
        return WindowStream(self._read, self._shown(special))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ids: in one call if special tokens are left out, else by `stream`."""
        if special:
            return super().decode(ids, special=True)
        named = set(self._named.values())
        return self._read([number for number in ids if number not in named])


def _kept(lengths: list[int], limit: int, *, marks: int) -> list[int]:
    """Return the number of ids kept of each text: the longer loses first, of equals the first."""
    room = limit - marks
    if room < 0:
        raise PromptError(f"limit={limit} leaves no room for the {marks} start and end marks; give at least {marks}")
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    if 2 * min(first, second) <= room:  # only the longer is cut
        return [first, room - first] if first < second else [room - second, second]
    return [room // 2, room - room // 2]


def _cut(part: tuple[list[int], Spans], keep: int, cut: Cut) -> tuple[list[int], Spans]:
    ids, spans = part
    if cut == "right":
        return ids[:keep], spans[:keep]
    first = len(ids) - keep
    return ids[first:], spans[first:]
