"""Say what bits per character means, once, for every model that is measured.

Knows sums, windows and the rule. Knows no model and no file.

The rule: a document is foretold from its first token to its end mark, and the end mark counts. Before the first token
stands one end mark, which is given and costs nothing; no document is seen through the one before it. Bits are divided
by the characters of the original text, newlines and spaces among them, the end mark not. A character outside the
vocabulary costs the bits of its [UNK] and, to say which one it is, log2(distinct unknown characters in training + 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hanmo.errors import DataError

__all__ = ["Bits", "bits_per_character", "foretell"]


@dataclass(frozen=True)
class Bits:
    """What a model spends on some documents; adding two gives both together.

    nats: -sum of log p over all tokens and end marks.   tokens: their number.
    characters: of the original text.   unknown: [UNK] among the tokens, each one character.
    """

    nats: float
    tokens: int
    characters: int
    unknown: int

    def __add__(self, other: "Bits") -> "Bits":
        return Bits(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.characters + other.characters,
            self.unknown + other.unknown,
        )


def bits_per_character(spent: Bits, *, distinct_unknown: int) -> float:
    """Return the bits per character of the original text, by the rule above.

    distinct_unknown: distinct unknown characters in training (`distinct_unknown` of the training data's NAME.json).
    Raises DataError if there are no characters.
    """
    if spent.characters < 1:
        raise DataError(f"{spent.characters} characters were measured, expected 1 or more; give files that hold text")
    return (spent.nats / math.log(2) + spent.unknown * math.log2(distinct_unknown + 1)) / spent.characters


def foretell(
    log_probabilities: Callable[[Sequence[int]], Sequence[float]], ids: Sequence[int], *, window: int
) -> list[float]:
    """Give natural log p of every id but the first, each once, read in windows that overlap by half.

    log_probabilities: of a window's ids but the first.   window: the most ids that are read at once, 2 or more.
    """
    found: list[float] = []
    start = 0
    while len(found) < len(ids) - 1:
        found += log_probabilities(ids[start : start + window])[len(found) - start :]
        start += window // 2
    return found
