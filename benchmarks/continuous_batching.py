"""Tokens per second of rows that join and leave a batch, against static batches and single rows; on the CPU engine.

    python benchmarks/continuous_batching.py [--model PATH] [--weights int8 int4] [--rows 8] [--requests 32]
        [--shortest 16] [--longest 128] [--rounds 3]

The first table has the time of a step of 1, 2, 4, 8 and 16 equal rows; the second has requests of unequal prompts and
ends, by --rows at once, with the share of texts that are equal to the same ones alone. Ways take turns; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np

import hanmo
from hanmo.bench.machine import describe
from hanmo.generate.loop import Engine, Limits, Token, sample
from hanmo.generate.sampling import Sampling
from hanmo.generate.scheduler import Event, RowRequest, Scheduler
from hanmo.pipeline import SMALL

SIZES = (1, 2, 4, 8, 16)
CONTEXT = 64  # ids of the prompt of equal rows
STEPS = 16  # of equal rows in a round
SAMPLING = Sampling(top_k=5)
Texts = list[list[int]]


def equal_rows(engine: Engine, rounds: int) -> dict[int, float]:
    """Return the seconds of a step by the number of rows."""
    prompt = [5 + place % 100 for place in range(CONTEXT)]
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            rows, _ = engine.prefill([prompt], room=STEPS + 2)
            rows.reorder([0] * size)
            rows.step([7] * size)
            for step in range(STEPS):
                begun = time.perf_counter()
                rows.step([8 + step] * size)
                times[size].append(time.perf_counter() - begun)
    return {size: statistics.median(each) for size, each in times.items()}


def requests_of(engine: Engine, count: int, shortest: int, longest: int) -> list[RowRequest]:
    """Make requests whose prompts and texts have from `shortest` to `longest` ids."""
    random = np.random.default_rng(1)
    lengths = np.geomspace(shortest, longest, count).astype(int)
    made = []
    for seed, (before, after) in enumerate(zip(random.permutation(lengths), random.permutation(lengths), strict=True)):
        prompt = random.integers(5, engine.vocab_size, before).tolist()
        made.append(RowRequest(prompt=prompt, seed=seed, sampling=SAMPLING, limits=Limits(max_tokens=int(after))))
    return made


def static(engine: Engine, requests: Sequence[RowRequest], rows: int) -> Texts:
    """Generate in batches of `rows`, in their order; each batch has one limit, so longer texts are cut after it."""
    texts: Texts = []
    for first in range(0, len(requests), rows):
        batch = requests[first : first + rows]
        ends = [each.limits.max_tokens or 0 for each in batch]
        part: Texts = [[] for _ in batch]
        events = sample(
            engine,
            [each.prompt for each in batch],
            seed=[each.seed for each in batch],
            sampling=SAMPLING,
            stop=lambda row, id, part=part, ends=ends: "length" if len(part[row]) + 1 == ends[row] else None,  # type: ignore[misc]
        )
        for event in events:
            if isinstance(event, Token):
                part[event.row].append(event.id)
        texts += part
    return texts


def continuous(engine: Engine, requests: Sequence[RowRequest], rows: int) -> Texts:
    """Generate with a scheduler of so many rows at once, all requests submitted at the start."""
    scheduler = Scheduler(engine, max_rows=rows, max_queue=len(requests))
    inboxes: list[SimpleQueue[Event]] = [SimpleQueue() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        scheduler.submit([request], inbox.put)
    scheduler.close(drain=True)
    events = [[inbox.get_nowait() for _ in range(inbox.qsize())] for inbox in inboxes]
    return [[event.id for event in each if isinstance(event, Token)] for each in events]


def main() -> None:
    """Print both tables for each kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--weights", nargs="+", default=["int8"])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--shortest", type=int, default=16)
    parser.add_argument("--longest", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    machine = describe()
    print(f"{machine['processor']}, {machine['cores']} cores, {time.strftime('%Y-%m-%d')}, {given.model}\n")
    for kind in given.weights:
        engine = hanmo.open_writer(given.model, weights=kind).engine
        steps = equal_rows(engine, given.rounds)
        print("| weights | rows | ms a step | × one row |\n|---|---:|---:|---:|")
        for size, seconds in steps.items():
            print(f"| {kind} | {size} | {seconds * 1e3:.1f} | {steps[1] / seconds * size:.2f} |", flush=True)
        requests = requests_of(engine, given.requests, given.shortest, given.longest)
        ways: dict[str, Callable[[], Texts]] = {
            "single": lambda engine=engine, requests=requests: continuous(engine, requests, 1),  # type: ignore[misc]
            "static": lambda engine=engine, requests=requests: static(engine, requests, given.rows),  # type: ignore[misc]
            "joining": lambda engine=engine, requests=requests: continuous(engine, requests, given.rows),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        texts: dict[str, Texts] = {}
        for _ in range(given.rounds):
            for way, run in ways.items():
                begun = time.perf_counter()
                texts[way] = run()
                times[way].append(time.perf_counter() - begun)
        count = sum(map(len, texts["single"]))
        print("\n| weights | way | tokens/s | × static | texts as alone |\n|---|---|---:|---:|---:|")
        for way, each in times.items():
            equal = sum(one == other for one, other in zip(texts[way], texts["single"], strict=True))
            speed = count / statistics.median(each)
            gain = statistics.median(times["static"]) / statistics.median(each)
            print(f"| {kind} | {way} | {speed:.1f} | {gain:.2f} | {equal} of {len(requests)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
