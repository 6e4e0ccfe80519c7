"""The sampling settings, the order in which the rules are applied, and presets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from hanmo.errors import ConfigError
from hanmo.generate import rules
from hanmo.generate.rules import Array, Crossing


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next id is chosen; the defaults sample from the model's unchanged distribution.

    temperature: 0 or more; 0 is greedy: the highest score, the lowest id of equals.
    top_k, top_p: see `rules`; None is no limit.   crossing: top-p's convention, "keep" or "drop".
    repetition_penalty: above 0; 1 is none.   no_repeat_ngram: 1 or more; None is none.
    banned: ids never chosen.   allowed: the only ids ever chosen; None is all.
    bias: (id, number) pairs; the numbers are added to the ids' logits.
    Raises ConfigError if a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    crossing: Crossing = "keep"
    repetition_penalty: float = 1.0
    no_repeat_ngram: int | None = None
    banned: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None
    bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.temperature != 0:
            rules.check_number("temperature", self.temperature, above=0.0)
        if self.top_k is not None:
            rules.check_count("top_k", self.top_k)
        if self.top_p is not None:
            rules.check_number("top_p", self.top_p, above=0.0, most=1.0)
        rules.check_crossing(self.crossing)
        rules.check_number("repetition_penalty", self.repetition_penalty, above=0.0)
        if self.no_repeat_ngram is not None:
            rules.check_count("no_repeat_ngram", self.no_repeat_ngram)
        for id, number in self.bias:
            rules.check_number(f"the bias of id {id}", number, above=-math.inf)
        if self.allowed is not None and not set(self.allowed) - set(self.banned):
            raise ConfigError(
                f"allowed is {self.allowed} and banned {self.banned}: no id is left to write; "
                "allow at least one that is not banned"
            )

    def apply(self, logits: Array, history: Sequence[Sequence[int]]) -> Array:
        """Apply the rules in their order.

        1. allowed, banned, bias   2. repetition_penalty   3. no_repeat_ngram   4. temperature   5. top_k   6. top_p, of
        the renormalised probabilities after top_k. Temperature 0 replaces 4 to 6.

        logits: [rows, vocab_size].   history: the ids so far, one sequence per row.   Returns new logits.
        """
        logits = self.restrict(logits, history)
        if self.temperature == 0:
            return rules.top_k(logits, 1)
        if self.temperature != 1:
            logits = rules.temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = rules.top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = rules.top_p(logits, self.top_p, crossing=self.crossing)
        return logits

    def restrict(self, logits: Array, history: Sequence[Sequence[int]]) -> Array:
        """Apply rules 1 to 3 of `apply` only; beam search does, to log-probabilities."""
        if self.allowed is not None:
            logits = rules.allowed(logits, self.allowed)
        if self.banned:
            logits = rules.banned(logits, self.banned)
        if self.bias:
            logits = rules.add_bias(logits, self.bias)
        if self.repetition_penalty != 1:
            logits = rules.repetition_penalty(logits, history, self.repetition_penalty)
        if self.no_repeat_ngram is not None:
            logits = rules.no_repeat_ngram(logits, history, self.no_repeat_ngram)
        return logits


TOP_K = 5
"""Default of top_k where neither the caller nor generation_config.json restricts the draw."""

GREEDY = Sampling(temperature=0)

PRESETS = MappingProxyType(
    {
        "greedy": GREEDY,
        # scripts/demo.py of imcaspar/gpt2-ml: top_p 0.95 without the crossing id, [PAD] never written.
        "gpt2-ml-demo": Sampling(top_p=0.95, crossing="drop", banned=(0,)),
        # The decoding of https://kexue.fm/archives/7292.
        "article": Sampling(top_k=5),
    }
)
