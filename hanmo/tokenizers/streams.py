"""Incremental decoders, from ids to text."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

_UNREADABLE = "\ufffd"


class TextStream(ABC):
    """Incremental decoder: the pieces joined are decode(ids).

    shown: special id → the text written for it, '' for none.
    """

    def __init__(self, shown: Mapping[int, str]) -> None:
        self._shown = shown

    def push(self, id: int) -> str:
        """Add an id and return the text that is now final: '' while a character is incomplete."""
        name = self._shown.get(id)
        if name is None:
            return self._add(id)
        return self.flush() + name if name else ""

    @abstractmethod
    def flush(self) -> str:
        """Return the text held back and start anew."""

    @abstractmethod
    def _add(self, id: int) -> str: ...


class WindowStream(TextStream):
    """For a function that decodes lists.

    decode: must be incremental: more ids only append text, except for an incomplete character, shown as U+FFFD. Only
    the ids since the last one that is a word by itself are decoded again.
    """

    def __init__(self, decode: Callable[[list[int]], str], shown: Mapping[int, str]) -> None:
        super().__init__(shown)
        self._decode = decode
        self._ids: list[int] = []
        self._written = ""

    def _add(self, id: int) -> str:
        self._ids.append(id)
        text = self._decode(self._ids)
        if text.endswith(_UNREADABLE):
            return ""
        added = text[len(self._written) :]
        alone = self._decode([id])
        if alone.strip() and _UNREADABLE not in alone and text.endswith(alone):
            self._ids, self._written = [id], alone
        else:
            self._written = text
        return added

    def flush(self) -> str:
        added = self._decode(self._ids)[len(self._written) :] if self._ids else ""
        self._ids, self._written = [], ""
        return added


class BytesStream(TextStream):
    """For ids that are bytes: a character is returned with its last byte, an incomplete one as U+FFFD at the end."""

    def __init__(self, bytes_of: Callable[[int], bytes], shown: Mapping[int, str]) -> None:
        super().__init__(shown)
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def _add(self, id: int) -> str:
        return self._decoder.decode(self._bytes_of(id))

    def flush(self) -> str:
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class WordStream(TextStream):
    """For vocabularies with '##': writes the spaces that they leave out, and holds no text back.

    A space goes between two words, and after one of `marks` if it is between a word and an English word.
    in_word: whether a character is part of a word.
    """

    def __init__(
        self,
        id_to_token: Callable[[int], str],
        shown: Mapping[int, str],
        *,
        in_word: Callable[[str], bool],
        marks: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(shown)
        self._id_to_token, self._in_word, self._marks = id_to_token, in_word, marks
        self._after_word = self._after_mark = False

    def _add(self, id: int) -> str:
        token = self._id_to_token(id)
        glued = token.startswith("##")
        token = token[2:] if glued else token
        if not token:
            return ""
        begins = self._in_word(token[0])
        english = begins and token[0].isascii() and token[0].isalpha()
        spaced = not glued and ((self._after_word and begins) or (self._after_mark and english))
        self._after_mark = self._after_word and token in self._marks
        self._after_word = self._in_word(token[-1])
        return " " + token if spaced else token

    def flush(self) -> str:
        self._after_word = self._after_mark = False
        return ""
