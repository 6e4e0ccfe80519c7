"""Stop rules on text: after a sentence, before a given string, at a number of characters.

A cut is never inside a character, nor between the end of a sentence and its closing quotes and brackets; so a rule
that is met waits for the next piece, keeps what still belongs and drops the rest.
"""

import unicodedata
from copy import copy
from dataclasses import dataclass

from hanmo.errors import ConfigError
from hanmo.generate.rules import check_count

ENDS = frozenset("。！？…｡!?‼⁇⁈⁉")  # "." depends on its neighbours: see Stopper
PLAIN_QUOTES = frozenset("\"'＂＇")  # the same sign opens and closes
LONGEST_RUN = 6  # "……？！！！" ends one sentence; a model repeating one mark must stop


@dataclass(frozen=True, kw_only=True)
class StopRules:
    """The conditions that end a text, whichever is met first; none by default.

    sentence_after: end with the first sentence whose last character is at this position (from 1) or later; 0 is the
        first sentence. Its closing quotes and brackets are kept. Sentences end with one of 。！？…!? or with a full
        stop that does not follow a digit and is followed by a space, a closing quote or a bracket.
    strings: end before the first of these.
    max_chars: end after this many grapheme clusters; a closing quote or bracket after the last one is kept.
    Raises ConfigError for numbers out of range and for empty strings.
    """

    sentence_after: int | None = None
    strings: tuple[str, ...] = ()
    max_chars: int | None = None

    def __post_init__(self) -> None:
        if self.sentence_after is not None:
            check_count("sentence_after", self.sentence_after, least=0)
        if self.max_chars is not None:
            check_count("max_chars", self.max_chars)
        if isinstance(self.strings, str):
            raise ConfigError(f"strings is the text {self.strings!r}; expected a tuple of texts, ({self.strings!r},)")
        if "" in self.strings:
            raise ConfigError(f"strings is {self.strings}: an empty string would stop every text; leave it out")


NEVER = StopRules()


class Stopper:
    """Cuts one text incrementally, after the text `before` (the prompt).

    before: counts for open quotes but not for lengths.
    reason: None while the text goes on; then "sentence", "string" or "chars", and later pieces are dropped.

    open ──sentence end or last character──► closing ──anything but a closing sign──► reason
      └────── "." not after a digit ───────► doubtful ──space──► reason;   other ──► open again
    """

    def __init__(self, rules: StopRules = NEVER, *, before: str = "") -> None:
        self.reason: str | None = None
        self._rules = rules
        self._held = ""  # may be the beginning of one of the strings
        self._characters = _Characters()
        self._count = 0  # characters
        self._run = 0  # consecutive sentence ends
        self._state = "open"
        self._met = ""  # the reason if the state is not "open"
        self._quotes: set[str] = set()  # open plain quotes
        for point in before:
            self._quote(point, self._characters.last)
            self._characters.joins(point)

    def push(self, piece: str) -> str:
        """Add a piece and return the text that is now final."""
        text, self._held = self._held + piece, ""
        starts, hold = [], 0
        for string in self._rules.strings:
            start = text.find(string)
            while start >= 0 and self._inside_character(text, start):
                start = text.find(string, start + 1)
            starts += [start] if start >= 0 else []
            sizes = range(min(len(string) - 1, len(text)), hold, -1)
            hold = next((size for size in sizes if text.endswith(string[:size])), hold)
        if starts:
            shown = self._take(text[: min(starts)])
            self._finish("string")
            return shown
        text, self._held = text[: len(text) - hold], text[len(text) - hold :]
        return self._take(text)

    def flush(self) -> str:
        """Return the text held back, at the end of the text."""
        shown, self._held = self._take(self._held), ""
        self._finish(None)
        return shown

    def _take(self, text: str) -> str:
        """Return the part of the text before the cut; sets the reason if there is a cut."""
        if self.reason:
            return ""
        for place, point in enumerate(text):
            if not self._takes(point):
                self.reason = self._met
                return text[:place]
        return text

    def _finish(self, reason: str | None) -> None:
        """Set the reason at the end of the text; a rule that is already met takes precedence."""
        if self.reason is None:
            self.reason = self._met if self._state == "closing" else reason

    def _inside_character(self, text: str, place: int) -> bool:
        characters = copy(self._characters)
        return [characters.joins(point) for point in text[: place + 1]][place]

    def _takes(self, point: str) -> bool:
        """Add a code point; tell whether it belongs to the text."""
        before = self._characters.last
        joins = self._characters.joins(point)
        closes = point in self._quotes or unicodedata.category(point) in ("Pe", "Pf")
        most, least = self._rules.max_chars, self._rules.sentence_after
        if self._state == "closing" and not joins and not closes:
            short = most is None or self._count < most
            if not (short and self._met == "sentence" and point in ENDS and self._run < LONGEST_RUN):
                return False
        if self._state == "doubtful" and point.isspace():
            return False
        self._quote(point, before)
        if joins or (closes and self._state != "open"):
            self._count += not joins
            if closes and self._state == "doubtful":
                self._state = "closing"
            return True
        self._count += 1
        self._run = self._run + 1 if point in ENDS else 0
        late = least is not None and self._count >= least
        if late and point in ENDS:
            self._state, self._met = "closing", "sentence"
        elif self._count == most:
            self._state, self._met = "closing", "chars"
        elif late and point == "." and not before.isdigit():
            self._state, self._met = "doubtful", "sentence"
        else:
            self._state = "open"
        return True

    def _quote(self, point: str, before: str) -> None:
        """Track a plain quote, which opens or closes; an apostrophe in a word is none."""
        if point in PLAIN_QUOTES and not (point == "'" and before.isascii() and before.isalnum()):
            self._quotes ^= {point}


class _Characters:
    """Grapheme clusters, by a subset of the rules of UAX 29."""

    def __init__(self) -> None:
        self.last = ""
        self._half_flag = False

    def joins(self, point: str) -> bool:
        """Add a code point; tell whether it belongs to the character before."""
        code = ord(point)
        flag = 0x1F1E6 <= code <= 0x1F1FF
        joined = (
            unicodedata.category(point) in ("Mn", "Me", "Mc")
            or "\u200d" in (point, self.last)
            or 0x1F3FB <= code <= 0x1F3FF  # skin colours
            or 0xE0020 <= code <= 0xE007F  # tags of regional flags
            or (self.last == "\r" and point == "\n")
            or (flag and self._half_flag)
        )
        self._half_flag = flag and not self._half_flag
        self.last = point
        return joined
