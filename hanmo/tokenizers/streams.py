"""Incremental decoders for vocabularies in which an id may be part of a character."""

import codecs
from collections.abc import Callable, Mapping

__all__ = ["BytesStream", "WindowStream"]

_UNREADABLE = "\ufffd"


class WindowStream:
    """Incremental decoder over a function that decodes lists.

    decode: must be incremental: more ids only append text, except for an incomplete character, shown as U+FFFD. Only
    the ids since the last one that is a word by itself are decoded again.
    shown: special id → the text written for it, '' for none.
    """

    def __init__(self, decode: Callable[[list[int]], str], shown: Mapping[int, str]) -> None:
        self._decode = decode
        self._shown = shown
        self._ids: list[int] = []
        self._written = ""

    def push(self, id: int) -> str:
        """Add an id and return the text that is now final."""
        name = self._shown.get(id)
        if name is not None:
            return self.flush() + name if name else ""
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
        """Return the text held back."""
        added = self._decode(self._ids)[len(self._written) :] if self._ids else ""
        self._ids, self._written = [], ""
        return added


class BytesStream:
    """Incremental decoder for ids that are bytes; a character is returned with its last byte.

    shown: special id → the text written for it, '' for none.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], shown: Mapping[int, str]) -> None:
        self._bytes_of = bytes_of
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Add an id and return the text that is now final."""
        name = self._shown.get(id)
        if name is not None:
            return self.flush() + name if name else ""
        return self._decoder.decode(self._bytes_of(id))

    def flush(self) -> str:
        """Return the text held back: U+FFFD for an incomplete character."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
