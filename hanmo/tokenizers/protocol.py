"""The one interface of every tokenizer: text to ids, ids to text at once or piece by piece.

Knows the shapes of requests and answers. Knows no vocabulary format and no rule of splitting.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hanmo.errors import PromptError

__all__ = ["Cut", "Encoding", "SpecialIds", "TextStream", "Tokenizer", "check_text"]

Cut = Literal["right", "left"]


@dataclass(frozen=True)
class SpecialIds:
    """The ids with a meaning of their own; None where the vocabulary has none."""

    pad: int | None = None
    unk: int | None = None
    start: int | None = None
    end: int | None = None
    mask: int | None = None

    def known(self) -> frozenset[int]:
        """Return those that the vocabulary has."""
        return frozenset(
            number for number in (self.pad, self.unk, self.start, self.end, self.mask) if number is not None
        )


@dataclass(frozen=True)
class Encoding:
    """A text, or a pair of texts, as ids.

    ids: with the marks.   first: how many of them belong to the first text and its marks.
    tokens, offsets: only where detail was asked for. An offset is (start, stop) so that text[start:stop] is what the
    token was made from, in code points of the text that its segment names; (0, 0) for the start and end marks.
    """

    ids: list[int]
    first: int
    tokens: list[str] | None = None
    offsets: list[tuple[int, int]] | None = None

    @property
    def segments(self) -> list[int]:
        """A segment id for each id: 0 for the first text and its marks, 1 for the second."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)

    def __len__(self) -> int:
        return len(self.ids)


class TextStream(Protocol):
    """Turns ids into text one at a time; the pieces joined are decode(ids) of the whole."""

    def push(self, id: int) -> str:
        """Take the next id and return the text that is now certain: '' while a character is incomplete."""
        ...

    def flush(self) -> str:
        """Return what was held back; after it the stream is as new."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer does."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are; ids run from 0 to vocab - 1."""
        ...

    @property
    def special(self) -> SpecialIds:
        """The ids with a meaning of their own."""
        ...

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
        """Return the ids of a text or of a pair.

        ends: add the start and end marks; None does as the tokenizer was made.
        limit: most ids in all; the longer text loses first, at its end (cut="right") or its beginning ("left").
        special: read '[MASK]' and its kind, written in the text, as the token; otherwise they are plain characters.
        detail: fill tokens and offsets, which is slower.
        Raises PromptError for a text with lone surrogates, or a limit too small for the marks.
        """
        ...

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
        ...

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text without marks, [tokens]: for corpora, where lists would take most of the time."""
        ...

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ids; special: write the special tokens out instead of leaving them away.

        Raises TokenizerError for an id that the vocabulary does not have.
        """
        ...

    def stream(self, *, special: bool = False) -> TextStream:
        """Return a new incremental decoder."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        ...

    def id_to_token(self, number: int) -> str:
        """Return the token of an id. Raises TokenizerError for an id that the vocabulary does not have."""
        ...


def check_text(text: object, *, name: str = "the text") -> None:
    """Raise PromptError unless text is a str that could be written to a file: no lone surrogates."""
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
