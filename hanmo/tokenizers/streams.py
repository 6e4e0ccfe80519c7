"""Incremental decoders for vocabularies whose ids may hold a part of a character.

Knows that text is certain up to a replacement character at its end. Knows no vocabulary.
"""

import codecs
from collections.abc import Callable, Mapping

__all__ = ["BytesStream", "WindowStream"]

_UNREADABLE = "\ufffd"


class WindowStream:
    """Streams what a decoder of whole lists writes.

    The decoder must write from left to right: more ids only add text, but for bytes of an incomplete character,
    which it shows as U+FFFD. Only the ids since the last one that is a word of its own are decoded again.

    named: special ids and what to write for them, '' to leave them away.
    """

    def __init__(self, decode: Callable[[list[int]], str], named: Mapping[int, str]) -> None:
        self._decode = decode
        self._named = named
        self._ids: list[int] = []
        self._shown = ""

    def push(self, id: int) -> str:
        """Take the next id and return the text that is now certain."""
        name = self._named.get(id)
        if name is not None:
            return self.flush() + name if name else ""
        self._ids.append(id)
        text = self._decode(self._ids)
        if text.endswith(_UNREADABLE):
            return ""
        added = text[len(self._shown) :]
        alone = self._decode([id])
        if alone.strip() and _UNREADABLE not in alone and text.endswith(alone):
            self._ids, self._shown = [id], alone
        else:
            self._shown = text
        return added

    def flush(self) -> str:
        """Return what was held back."""
        added = self._decode(self._ids)[len(self._shown) :] if self._ids else ""
        self._ids, self._shown = [], ""
        return added


class BytesStream:
    """Streams ids that are bytes each; a character is written when its last byte is there.

    named: special ids and what to write for them, '' to leave them away.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], named: Mapping[int, str]) -> None:
        self._bytes_of = bytes_of
        self._named = named
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Take the next id and return the text that is now certain."""
        name = self._named.get(id)
        if name is not None:
            return self.flush() + name if name else ""
        return self._decoder.decode(self._bytes_of(id))

    def flush(self) -> str:
        """Return what was held back: U+FFFD for a character whose last bytes never came."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
