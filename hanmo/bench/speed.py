"""How fast a model generates: prefill and decoding times of interleaved cases, and the memory bandwidth between them.

Knows engines and clocks. Knows no options and prints nothing.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from hanmo.bench.machine import METHOD, MemoryReader, describe, load
from hanmo.bench.subject import Subject, bytes_per_token, measure_start
from hanmo.checkpoint.inspect import Inspection
from hanmo.cores import cores
from hanmo.errors import PromptError
from hanmo.generate.loop import Engine, QueueingEngine, take_rows
from hanmo.pipeline import Pipeline

LENGTHS, BATCHES = (16, 128, 256, 512, 1000), (1, 8, 32)
USUAL = 128  # prompt tokens at which batches and the share of the bandwidth are measured
STEPS, WARM = 12, 2  # steps that are timed, and steps before them
PROMPT = "今天天气不错"

Show = Callable[[str, int, int], object]


class Case(NamedTuple):
    """What is timed: decoding after a prompt of so many tokens, in so many rows at once."""

    tokens: int
    rows: int


class Times(NamedTuple):
    """Seconds of each prefill, and of each decoding step after it."""

    prompts: list[float]
    steps: list[float]


def measure(subject: Subject, *, quick: bool = False, show: Show = lambda title, done, total: None) -> dict[str, Any]:
    """Measure a model on this machine; all times are in seconds, all sizes in bytes.

    quick: one round instead of three, and a smaller array for the bandwidth.
    show: called with (what is being done, how much of it is done, of how much).
    Raises CheckpointError for a model that cannot generate text, and what opening it raises.
    """
    looked, busy = subject.look(), load()
    found, rounds = looked.found, 1 if quick else 3
    start = _start(subject, looked, rounds, show)
    writer = subject.open()
    engine = writer.engine
    threads = (subject.threads or cores()) if subject.device.startswith("cpu") else 1
    reader = MemoryReader(device=subject.device, threads=threads, least=1 << 28 if quick else 1 << 30)
    speeds: list[float] = []
    times = measure_cases(
        engine,
        _cases(engine.max_positions),
        rounds=rounds,
        seconds=1 if quick else 10,
        between=lambda: speeds.extend(reader.read() for _ in range(3)),
        show=show,
    )
    sizes = subject.sizes(writer)
    held, read, speed = sum(sizes.values()), bytes_per_token(writer.config, sizes), median(speeds)
    anonymous = start["anonymous_bytes"]
    lengths, batches = _tables(times)
    return {
        "model": {
            "path": str(looked.path),
            "family": found.family,
            "parameters": found.parameters,
            "positions": engine.max_positions,
            "weights": subject.weights,
            "weights_bytes": held,
            "to_float32": held / (4 * found.parameters),
            "answers": writer.config.is_encoder_decoder,
        },
        "machine": {**describe(subject.device), "load": busy, "device": subject.device, "threads": threads},
        "start": start | {"anonymous_per_weights": None if anonymous is None else anonymous / held},
        "lengths": lengths,
        "batches": batches,
        "bandwidth": {
            "method": METHOD,
            "array_bytes": reader.nbytes,
            "bytes_per_second": speed,
            "weights_bytes_per_token": read,
            "share": read / batches["rows"][0]["step_seconds"] / speed,
        },
        "writing": _writing(writer, rounds=rounds, max_chars=32 if quick else 128, show=show),
    }


def measure_cases(
    engine: Engine,
    cases: Sequence[Case],
    *,
    rounds: int,
    seconds: float = 0,
    between: Callable[[], object] = lambda: None,
    show: Show = lambda title, done, total: None,
) -> dict[Case, Times]:
    """Time the cases in turn, after an untimed round; between is called before each timed round.

    rounds, seconds: the least number of rounds and the least time.
    The prompt is random ids, read once and then copied to all rows; each step takes the most likely id. For an
    encoder-decoder the tokens are those of the source.
    """
    times = {case: Times([], []) for case in cases}
    for case in cases:
        show("warming up", 0, 1)
        _time(engine, case, Times([], []))
    start, number = time.perf_counter(), 0
    while number < rounds or time.perf_counter() - start < seconds:
        between()
        for place, case in enumerate(cases):
            show("measuring", min(number, rounds - 1) * len(cases) + place, rounds * len(cases))
            _time(engine, case, times[case])
        number += 1
    return times


def fitting(lengths: Sequence[int], positions: int | None) -> list[int]:
    """Keep the lengths after which all steps have positions; the longest such length replaces the others."""
    if positions is None:
        return list(lengths)
    longest = max(1, positions - _steps(positions) - WARM)
    return sorted({min(length, longest) for length in lengths})


def _steps(positions: int | None) -> int:
    return STEPS if positions is None else max(1, min(STEPS, positions // 2 - WARM))


def _cases(positions: int | None) -> list[Case]:
    lengths = fitting(LENGTHS, positions)
    usual = min(lengths, key=lambda length: abs(length - USUAL))
    return [*(Case(length, 1) for length in lengths), *(Case(usual, rows) for rows in BATCHES if rows > 1)]


def _time(engine: Engine, case: Case, times: Times) -> None:
    """Time a case once; a `QueueingEngine` is given a step before the last ids are fetched, as in generation."""
    queue = engine if isinstance(engine, QueueingEngine) else None
    prompt, steps = _prompt(engine.vocab_size, case.tokens), _steps(engine.max_positions)
    start = time.perf_counter()
    rows, logits = engine.prefill([prompt], room=WARM + steps)
    int(logits[0].argmax())  # synchronises
    times.prompts.append(time.perf_counter() - start)
    if case.rows > 1:
        rows.reorder([0] * case.rows)
        logits = take_rows(logits, [0] * case.rows)
    last = time.perf_counter()
    for number in range(WARM + steps):
        ids = logits.argmax(-1)
        fetched = queue.fetch(ids) if queue else ids.tolist
        logits = rows.step(ids if queue else fetched())
        fetched()
        now = time.perf_counter()
        if number >= WARM:
            times.steps.append(now - last)
        last = now


def _prompt(vocab_size: int, tokens: int) -> list[int]:
    return [int(id) for id in np.random.default_rng(0).integers(0, vocab_size, tokens)]


def _start(subject: Subject, looked: Inspection, rounds: int, show: Show) -> dict[str, Any]:
    """Convert the weights if necessary, and start fresh processes; return median times and the largest sizes."""
    total, read = sum(file.bytes or 0 for file in looked.files), 0

    def count(nbytes: int) -> None:
        nonlocal read
        read += nbytes
        show("converting", read, total)

    start = time.perf_counter()
    subject.converted(count)
    found: dict[str, Any] = {"conversion_seconds": time.perf_counter() - start if read else None}
    config, starts = looked.found.config, []
    prompt = _prompt(config.vocab_size, fitting((16,), config.main.context)[0])
    for number in range(rounds):
        show("starting", number, rounds)
        starts.append(measure_start(subject, prompt))
    for name in starts[0]:
        values = [each[name] for each in starts]
        found[name] = None if None in values else median(values) if name.endswith("seconds") else max(values)
    return found


def _tables(times: dict[Case, Times]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the medians of the cases by length, in single rows, and by the number of rows."""
    lengths, batches = [], []
    many = next((case.tokens for case in times if case.rows > 1), 0)
    for case, of in times.items():
        prompt, step = median(of.prompts), median(of.steps)
        if case.rows == 1:
            speeds = {"prompt_tokens_per_second": case.tokens / prompt, "tokens_per_second": 1 / step}
            lengths.append({"tokens": case.tokens, "first_token_seconds": prompt, "token_seconds": step, **speeds})
        if case.tokens == many:
            batches.append({"rows": case.rows, "step_seconds": step, "tokens_per_second": case.rows / step})
            batches[-1]["times_one"] = case.rows * batches[0]["step_seconds"] / step
    ratio = lengths[-1]["token_seconds"] / lengths[0]["token_seconds"]
    return {"rows": lengths, "longest_to_shortest": ratio}, {"tokens": many, "rows": batches}


def _writing(writer: Pipeline, *, rounds: int, max_chars: int, show: Show) -> dict[str, Any] | None:
    """Generate text with default settings; None without a vocabulary that holds the prompt, or if a text is empty."""
    if writer.tokenizer is None:
        return None
    speeds = []
    for number in range(rounds + 1):
        show("writing", number, rounds + 1)
        start = time.perf_counter()
        try:
            [written] = writer.write_detailed(PROMPT, seed=number, stop=None, max_chars=max_chars)
        except PromptError:
            return None
        speeds.append(len(written.text) / (time.perf_counter() - start))
    if not all(speeds[1:]):
        return None
    return {"prompt": PROMPT, "max_characters": max_chars, "characters_per_second": median(speeds[1:])}
