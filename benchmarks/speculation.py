"""Time of a token with and without drafts by prompt lookup, on texts that repeat and on plain ones; on the CPU engine.

    python benchmarks/speculation.py [--model PATH] [--weights int8 int4] [--tokens 200] [--rounds 5] [--threads N]

Each text is generated with and without drafts in turn; the ids are compared. Ratios are with : without, medians of the
rounds; a plain text should not exceed 1.02. Greedy texts repeat themselves sooner or later, with top-k 20 they hardly
do. A model without the fused step, as the small one, has no drafts: its texts show how many steps they would save.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hanmo import open_writer
from hanmo.bench.machine import describe
from hanmo.generate.loop import Engine, Limits, Token, sample
from hanmo.generate.sampling import GREEDY, Sampling
from hanmo.generate.speculation import MAX_TOKENS, PromptLookup, speculative
from hanmo.pipeline import SMALL, Pipeline

POEM = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
BEGINNINGS = "今天天气不错", "话说", "学而时习之"


class Text(NamedTuple):
    """A text to generate.   kind: its name in the table."""

    kind: str
    prompt: Sequence[int]
    sampling: Sampling
    seed: int = 0


def texts_of(writer: Pipeline) -> list[Text]:
    """Return the texts; a model without a vocabulary gets ids in place of words."""

    def ids(text: str) -> list[int]:
        if writer.tokenizer is None:
            return [200 + ord(character) % (writer.config.vocab_size - 200) for character in text]
        return writer.tokenizer.encode(text, ends=False).ids

    found = [Text("poem three times, greedy", ids(POEM * 3), GREEDY)]
    found += [Text("greedy", ids(begin), GREEDY) for begin in BEGINNINGS]
    for k in (5, 20):
        found += [Text(f"top-k {k}", ids(begin), Sampling(top_k=k), seed) for seed, begin in enumerate(BEGINNINGS)]
    return found


def generate(engine: Engine, text: Text, tokens: int) -> tuple[list[int], float]:
    """Return the ids of a text, and the seconds of an id after the first."""
    limits, begun, ids = Limits(max_tokens=tokens), 0.0, []
    for event in sample(engine, [text.prompt], seed=text.seed, sampling=text.sampling, limits=limits):
        if isinstance(event, Token):
            begun = begun or time.perf_counter()
            ids.append(event.id)
    return ids, (time.perf_counter() - begun) / max(len(ids) - 1, 1)


def replay(text: Text, ids: Sequence[int]) -> tuple[int, int]:
    """Return how many steps a text takes with drafts, and how many ids they compute."""
    lookup, steps, computed, draft = PromptLookup(text.prompt), 0, 0, list[int]()
    for left, id in zip(range(len(ids) - 1, 0, -1), ids, strict=False):
        lookup.append(id)
        if draft[:1] == [id]:
            draft = draft[1:]
        else:
            draft = lookup.draft(min(MAX_TOKENS, left) - 1)
            steps, computed = steps + 1, computed + 1 + len(draft)
    return steps, computed


def measure(engine: Engine, text: Text, tokens: int, rounds: int) -> tuple[list[int], str]:
    """Return the ids of a text, and the last columns of its row: times and their ratio."""
    expected, _ = generate(engine, text, tokens)
    if (drafting := speculative(engine)) is engine:
        return expected, "– | – | –"
    times: dict[bool, list[float]] = {True: [], False: []}  # with drafts and without
    for number in range(rounds):
        for drafts in (number % 2 == 0, number % 2 == 1):
            ids, seconds = generate(drafting if drafts else engine, text, tokens)
            if ids != expected:
                raise SystemExit(f"drafts changed the text {text}: {ids}, expected {expected}")
            times[drafts].append(seconds)
    ratios = sorted(after / before for after, before in zip(times[True], times[False], strict=True))
    after, before = (statistics.median(times[drafts]) * 1e3 for drafts in (True, False))
    spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
    return expected, f"{before:.2f} | {after:.2f} | {statistics.median(ratios):.2f} ({spread})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--weights", nargs="+", default=["int8", "int4"])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    machine = describe()
    print(f"{machine['processor']}, {machine['cores']} cores, {time.strftime('%Y-%m-%d')}, {given.model}\n")
    print("| weights | text | ids | steps with | ids computed | without, ms a token | with | ratio (rounds) |")
    print("|---|---|---:|---:|---:|---:|---:|---|")
    for kind in given.weights:
        writer = open_writer(given.model, weights=kind, threads=given.threads)
        for text in texts_of(writer):
            ids, times = measure(writer.engine, text, given.tokens, given.rounds)
            steps, computed = replay(text, ids)
            print(f"| {kind} | {text.kind} | {len(ids) - 1} | {steps} | {computed} | {times} |", flush=True)


if __name__ == "__main__":
    main()
