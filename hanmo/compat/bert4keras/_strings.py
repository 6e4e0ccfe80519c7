"""bert4keras's helpers for strings: conversions and cutting a text at its punctuation. Knows str alone."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any


def is_string(s: Any) -> bool:
    """Say whether s is a str."""
    return isinstance(s, str)


def strQ2B(ustring: str) -> str:  # bert4keras's own spelling
    """Turn full-width signs into half-width ones."""
    halves = {code: code - 65248 for code in range(65281, 65375)} | {12288: 32}
    return ustring.translate(halves)


def string_matching(s: str, keywords: Iterable[str]) -> bool:
    """Say whether one of the keywords, regular expressions, is found in s."""
    return any(re.search(keyword, s) for keyword in keywords)


def convert_to_unicode(text: Any, encoding: str = "utf-8", errors: str = "ignore") -> Any:
    """Decode bytes; give anything else back as it is."""
    return text.decode(encoding, errors) if isinstance(text, bytes) else text


def convert_to_str(text: Any, encoding: str = "utf-8", errors: str = "ignore") -> Any:
    """Decode bytes; give anything else back as it is, as in Python 3 str is str."""
    return convert_to_unicode(text, encoding, errors)


def lowercase_and_normalize(text: str) -> str:
    """Lower the case and take the accents off."""
    letters = unicodedata.normalize("NFD", text.lower())
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")


def text_segmentate(text: str, maxlen: int, seps: str = "\n", strips: str | None = None) -> list[str]:
    """Cut a text into parts of at most maxlen, at the first of seps that does it, then at the next.

    Neighbouring pieces share a part while they fit. A piece that no separator divides stays longer than maxlen.
    strips: signs taken off both ends of every part, beside white space.
    """
    text = text.strip().strip(strips)
    if not seps or len(text) <= maxlen:
        return [text]
    parts, part = [], ""
    pieces = text.split(seps[0])
    for number, piece in enumerate(pieces, 1):
        if part and piece and len(part) + len(piece) > maxlen - 1:
            parts += text_segmentate(part, maxlen, seps[1:], strips)
            part = ""
        part += piece if number == len(pieces) else piece + seps[0]
    return parts + text_segmentate(part, maxlen, seps[1:], strips) if part else parts
