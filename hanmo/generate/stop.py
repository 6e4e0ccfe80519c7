"""Where a text ends by what it says: at a sentence, before a given string, at a number of characters.

Knows pieces of text, in the order in which they are written, whatever vocabulary they come from. Does not know ids.
A cut never falls inside a character, nor between a sentence's end and the quotes and brackets that close it; so a
rule that is met waits for the piece after it, takes from it what still belongs, and drops the rest.
"""

import unicodedata
from copy import copy
from dataclasses import dataclass

from hanmo.errors import ConfigError
from hanmo.generate.rules import check_count

ENDS = frozenset("。！？…｡!?‼⁇⁈⁉")  # "." needs a look at its neighbours: see _Cutter
PLAIN_QUOTES = frozenset("\"'＂＇")  # the same sign opens and closes, so it has to be counted
LONGEST_RUN = 6  # "……？！！！" still ends one sentence; a model stuck on one mark must not go on for ever


@dataclass(frozen=True, kw_only=True)
class StopRules:
    """When a text is finished; the first rule that is met ends it, none is met by default.

    sentence_after: end with the first sentence that ends on the given character or later, counted from 1; 0 is the
        first sentence. Its closing quotes and brackets are kept. Sentences end with one of 。！？…!? or with a full
        stop that does not follow a digit and is followed by a space, a closing quote or a bracket.
    strings: end before the first of these, which is not part of the text.
    max_chars: end after so many characters; a closing quote or bracket directly after the last one is still kept.
        Characters are counted as readers see them: an accent or the parts of an emoji add nothing.
    Raises ConfigError for numbers out of range and for empty strings.
    """

    sentence_after: int | None = None
    strings: tuple[str, ...] = ()
    max_chars: int | None = None

    def __post_init__(self) -> None:
        """Check everything before the first character."""
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
    """Cut one text while it is written: push pieces, show what comes back, look at `reason`.

    reason: None while the text goes on; then "sentence", "string" or "chars", and everything pushed later is dropped.
    """

    def __init__(self, rules: StopRules = NEVER, *, before: str = "") -> None:
        """Start behind the text `before` (the prompt), which counts for open quotes but not for lengths."""
        self._strings = rules.strings
        self._held = ""  # may be the beginning of one of the strings
        self._cutter = _Cutter(rules, before)

    @property
    def reason(self) -> str | None:
        """Why the text is finished, if it is."""
        return self._cutter.reason

    def push(self, piece: str) -> str:
        """Take the next piece and return what may be shown now; pieces come back joined and in order."""
        text, self._held = self._held + piece, ""
        found = self._find(text)
        if found is not None:
            shown = self._cutter.take(text[:found])
            self._cutter.finish("string")
            return shown
        hold = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - hold :]
        return self._cutter.take(text[: len(text) - hold])

    def flush(self) -> str:
        """Return what was held back, when no more pieces come; a rule that was met, if one was, is the reason."""
        shown, self._held = self._cutter.take(self._held), ""
        self._cutter.finish(None)
        return shown

    def _find(self, text: str) -> int | None:
        """Find the first string that starts where a character does."""
        starts = []
        for string in self._strings:
            start = text.find(string)
            while start >= 0 and self._cutter.splits(text, start):
                start = text.find(string, start + 1)
            starts += [start] if start >= 0 else []
        return min(starts, default=None)


class _Characters:
    """What a reader sees as one character: which code points belong to the one before (after UAX 29, shortened)."""

    def __init__(self) -> None:
        self.last = ""
        self._half_flag = False

    def joins(self, point: str) -> bool:
        """Say whether this code point belongs to the character before, and remember it."""
        code = ord(point)
        flag = 0x1F1E6 <= code <= 0x1F1FF
        joined = (
            unicodedata.category(point) in ("Mn", "Me", "Mc")
            or point == "\u200d"
            or self.last == "\u200d"
            or 0x1F3FB <= code <= 0x1F3FF  # skin colours
            or 0xE0020 <= code <= 0xE007F  # tags of regional flags
            or (self.last == "\r" and point == "\n")
            or (flag and self._half_flag)
        )
        self._half_flag = flag and not self._half_flag
        self.last = point
        return joined


class _Cutter:
    """The rules that look at single characters.

    open ──sentence end or last character──► closing ──anything but a closing sign──► finished
      └────── "." not after a digit ───────► doubtful ──space──► finished;   other ──► open again
    """

    def __init__(self, rules: StopRules, before: str) -> None:
        self.reason: str | None = None
        self._rules = rules
        self._characters = _Characters()
        self._count = 0
        self._run = 0  # sentence ends directly behind one another
        self._state = "open"
        self._met = ""
        self._quotes: set[str] = set()  # plain quotes that are open
        for point in before:
            self._quote(point)
            self._characters.joins(point)

    def take(self, text: str) -> str:
        """Return the part of the text that belongs; less than all of it sets the reason."""
        if self.reason:
            return ""
        for place, point in enumerate(text):
            if not self._takes(point):
                self.reason = self._met
                return text[:place]
        return text

    def finish(self, reason: str | None) -> None:
        """Set the reason now that nothing more comes: a rule that is met already goes before the given one."""
        if self.reason is None:
            self.reason = self._met if self._state == "closing" else reason

    def splits(self, text: str, place: int) -> bool:
        """Say whether a cut of the coming text at this place would fall inside a character."""
        characters = copy(self._characters)
        for point in text[:place]:
            characters.joins(point)
        return characters.joins(text[place])

    def _takes(self, point: str) -> bool:
        before = self._characters.last
        joins = self._characters.joins(point)
        closes = point in self._quotes or unicodedata.category(point) in ("Pe", "Pf")
        if self._state == "closing" and not (joins or closes or self._runs_on(point)):
            return False
        if self._state == "doubtful" and point.isspace():
            return False
        self._count += not joins
        self._quote(point, before)
        if not joins and not (closes and self._state != "open"):
            self._look(point, before)
        elif self._state == "doubtful" and closes:
            self._state = "closing"
        return True

    def _look(self, point: str, before: str) -> None:
        """Move on to the state that this character, which is no mere addition to the last, leads to."""
        late = self._rules.sentence_after is not None and self._count >= self._rules.sentence_after
        full = self._count == self._rules.max_chars
        self._run = self._run + 1 if point in ENDS else 0
        if late and point in ENDS:
            self._state, self._met = "closing", "sentence"
        elif full:
            self._state, self._met = "closing", "chars"
        elif late and point == "." and not before.isdigit():
            self._state, self._met = "doubtful", "sentence"
        else:
            self._state = "open"

    def _runs_on(self, point: str) -> bool:
        short = self._rules.max_chars is None or self._count < self._rules.max_chars
        return self._met == "sentence" and point in ENDS and self._run < LONGEST_RUN and short

    def _quote(self, point: str, before: str | None = None) -> None:
        """Count a plain quote, which opens or closes; an apostrophe inside a word is none."""
        before = self._characters.last if before is None else before
        if point in PLAIN_QUOTES and not (point == "'" and before.isascii() and before.isalnum()):
            self._quotes ^= {point}


def _overlap(text: str, string: str) -> int:
    """Return how many characters at the end of text begin the string without completing it."""
    return next((size for size in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:size])), 0)


def cut(text: str, rules: StopRules, *, before: str = "") -> tuple[str, str | None]:
    """Cut a whole text at once: the text that is left, and the reason if a rule was met."""
    stopper = Stopper(rules, before=before)
    return stopper.push(text) + stopper.flush(), stopper.reason
