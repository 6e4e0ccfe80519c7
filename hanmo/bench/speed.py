"""How fast a model generates: prefill and decoding times of interleaved cases, and the memory bandwidth between them.

Knows engines and clocks. Knows no options and prints nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from hanmo.bench.machine import METHOD, MemoryReader, describe, load
from hanmo.bench.subject import Subject, bytes_per_token, measure_start
from hanmo.cores import cores
from hanmo.errors import PromptError
from hanmo.generate.loop import Engine, QueueingEngine, take_rows
from hanmo.pipeline import Pipeline

__all__ = ["Case", "Times", "fitting", "measure", "measure_cases"]

LENGTHS, BATCHES = (16, 128, 256, 512, 1000), (1, 8, 32)
USUAL = 128  # prompt tokens at which batches and the share of the bandwidth are measured
STEPS, WARM = 12, 2  # steps that are timed, and steps before them
PROMPT = "今天天气不错"

Show = Callable[[str, int, int], object]


class Case(NamedTuple):
    """What is timed: decoding after a prompt of so many tokens, in so many rows at once."""

    tokens: int
    rows: int


@dataclass
class Times:
    """Seconds of each prefill, and of each decoding step after it."""

    prompts: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def measure(subject: Subject, *, quick: bool = False, show: Show = lambda title, done, total: None) -> dict[str, Any]:
    """Measure a model on this machine; all times are in seconds, all sizes in bytes.

    quick: one round instead of three, and a smaller array for the bandwidth.
    show: called with (what is being done, how much of it is done, of how much).
    Raises CheckpointError for a model that cannot generate text, and what opening it raises.
    """
    looked, busy = subject.look(), load()
    found, rounds = looked.found, 1 if quick else 3
    start = {"conversion_seconds": _convert(subject, sum(file.bytes or 0 for file in looked.files), show)}
    start |= _start(subject, found.config.vocab_size, found.config.main.context, rounds, show)
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
    lengths, batches = _lengths(times), _batches(times)
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
    times = {case: Times() for case in cases}
    for case in cases:
        show("warming up", 0, 1)
        _time(engine, case, Times())
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


def _convert(subject: Subject, total: int, show: Show) -> float | None:
    """Convert the weights if necessary, and return the seconds that it took; None if it was not."""
    if not subject.is_converted:
        return None
    from hanmo.inference.openvino.engine import open_weights

    read: list[int] = []

    def count(nbytes: int) -> None:
        read.append(nbytes)
        show("converting", sum(read), total)

    start = time.perf_counter()
    open_weights(subject.path, weights=str(subject.weights), progress=count)
    return time.perf_counter() - start if read else None


def _start(subject: Subject, vocab_size: int, positions: int | None, rounds: int, show: Show) -> dict[str, Any]:
    """Start the model in fresh processes; return the median times and the largest sizes."""
    prompt, starts = _prompt(vocab_size, fitting((16,), positions)[0]), []
    for number in range(rounds):
        show("starting", number, rounds)
        starts.append(measure_start(subject, prompt))
    found = {name: [start[name] for start in starts] for name in starts[0]}
    return {
        name: None if None in values else median(values) if name.endswith("seconds") else max(values)
        for name, values in found.items()
    }


def _lengths(times: dict[Case, Times]) -> dict[str, Any]:
    rows = [
        {
            "tokens": case.tokens,
            "first_token_seconds": (prompt := median(of.prompts)),
            "prompt_tokens_per_second": case.tokens / prompt,
            "token_seconds": (step := median(of.steps)),
            "tokens_per_second": 1 / step,
        }
        for case, of in times.items()
        if case.rows == 1
    ]
    return {"rows": rows, "longest_to_shortest": rows[-1]["token_seconds"] / rows[0]["token_seconds"]}


def _batches(times: dict[Case, Times]) -> dict[str, Any]:
    tokens = next((case.tokens for case in times if case.rows > 1), 0)
    found = {case.rows: median(of.steps) for case, of in times.items() if case.tokens == tokens}
    rows = [
        {"rows": rows, "step_seconds": step, "tokens_per_second": rows / step, "times_one": rows * found[1] / step}
        for rows, step in sorted(found.items())
    ]
    return {"tokens": tokens, "rows": rows}


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
