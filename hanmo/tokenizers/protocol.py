"""The interface of all tokenizers: text to ids, and ids to text at once or incrementally."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import PromptError
from hanmo.tokenizers.streams import TextStream

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


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of every tokenizer.

    vocab_size: number of ids, which run from 0 to vocab_size - 1.   special: the special ids.
    """

    vocab_size: int
    special: SpecialIds

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

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ids, with the special tokens written out if `special`, else without them.

        Raises TokenizerError for an id outside the vocabulary.
        """
        stream = self.stream(special=special)
        return "".join([stream.push(number) for number in ids]) + stream.flush()

    def stream(self, *, special: bool = False) -> TextStream:
        """Return a new incremental decoder."""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""

    def id_to_token(self, number: int) -> str:
        """Return the token of an id. Raises TokenizerError for an id outside the vocabulary."""


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
