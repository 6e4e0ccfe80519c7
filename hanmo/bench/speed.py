"""How fast a model writes: times of prompts and steps, by turns, with the memory's speed between them.

Knows engines and clocks. Knows no options and prints nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from hanmo.bench.machine import METHOD, MemoryReader, describe, load
from hanmo.bench.start import measure_start
from hanmo.bench.subject import Subject, bytes_per_token
from hanmo.errors import PromptError
from hanmo.generate.loop import Engine, QueueingEngine, take_rows
from hanmo.pipeline import Pipeline

__all__ = ["Case", "Times", "fitting", "measure", "measure_cases"]

LENGTHS, BATCHES = (16, 128, 256, 512, 1000), (1, 8, 32)
USUAL = 128  # tokens before the one that batches and the memory's share are measured at
STEPS, WARM = 12, 2  # that are counted, and that come before
PROMPT = "今天天气不错"

Show = Callable[[str, int, int], None]


class Case(NamedTuple):
    """What is timed: steps behind so many tokens, so many rows at once."""

    tokens: int
    rows: int


@dataclass
class Times:
    """Seconds of each prompt up to the token that follows it, and of each step behind it."""

    prompts: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def measure(subject: Subject, *, quick: bool = False, show: Show = lambda words, done, total: None) -> dict[str, Any]:
    """Measure a model on this machine; all times are in seconds, all sizes in bytes.

    quick: one round in place of three, and a smaller array for the memory's speed.
    show: called with (what is being done, how much of it is done, of how much).
    Raises CheckpointError for a model that does not write, and what opening it raises.
    """
    looked, busy = subject.look(), load()
    conversion = _convert(subject, sum(file.bytes or 0 for file in looked.files), show)
    rounds = 1 if quick else 3
    prompt = _prompt(looked.found.config.vocab_size, fitting((16,), looked.found.config.main.context)[0])
    starts = []
    for number in range(rounds):
        show("starting", number, rounds)
        starts.append(measure_start(subject, prompt))
    writer = subject.open()
    engine = writer.engine
    threads = _threads(subject)
    reader = MemoryReader(device=subject.device, threads=threads, least=1 << 28 if quick else 1 << 30)
    speeds: list[float] = []
    cases = _cases(engine.max_positions)
    times = measure_cases(
        engine,
        cases,
        rounds=rounds,
        seconds=1 if quick else 10,
        between=lambda: speeds.extend(reader.read() for _ in range(3)),
        show=show,
    )
    sizes = subject.sizes(writer)
    held, read, speed = sum(sizes.values()), bytes_per_token(writer.config, sizes), median(speeds)
    batches = _batches(times)
    return {
        "model": {
            "path": str(looked.path),
            "family": looked.found.family,
            "parameters": looked.found.parameters,
            "positions": engine.max_positions,
            "weights": subject.weights,
            "weights_bytes": held,
            "to_float32": held / (4 * looked.found.parameters),
            "answers": writer.config.is_encoder_decoder,
        },
        "machine": {**describe(subject.device), "load": busy, "device": subject.device, "threads": threads},
        "start": _start(conversion, starts, held),
        "lengths": _lengths(times),
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
    between: Callable[[], None] = lambda: None,
    show: Show = lambda words, done, total: None,
) -> dict[Case, Times]:
    """Time the cases by turns, after a round that is not counted; between is called before each round that is.

    rounds, seconds: measure for so many, and so long, at least: small models take many rounds.
    The prompt is random ids, read once and then copied to all rows; each step's id is the likeliest. For an
    encoder-decoder the tokens are those of the source.
    """
    times = {case: Times() for case in cases}
    for case in cases:
        show("warming up", 0, 1)
        _run(engine, case)
    start, number = time.perf_counter(), 0
    while number < rounds or time.perf_counter() - start < seconds:
        between()
        for place, case in enumerate(cases):
            show("measuring", min(number, rounds - 1) * len(cases) + place, rounds * len(cases))
            found = _run(engine, case)
            times[case].prompts += found.prompts
            times[case].steps += found.steps
        number += 1
    return times


def fitting(lengths: Sequence[int], positions: int | None) -> list[int]:
    """Keep the lengths behind which all steps find positions; the longest that does stands in for those that do not."""
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


def _run(engine: Engine, case: Case) -> Times:
    """Time a case once; a device with a queue is asked for a step before the last ids are there, as by the loop."""
    queue = engine if isinstance(engine, QueueingEngine) else None
    prompt, times, steps = _prompt(engine.vocab_size, case.tokens), Times(), _steps(engine.max_positions)
    start = time.perf_counter()
    rows, logits = engine.prefill([prompt], room=WARM + steps)
    int(logits[0].argmax())  # waits
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
    return times


def _prompt(vocab_size: int, tokens: int) -> list[int]:
    return [int(id) for id in np.random.default_rng(0).integers(0, vocab_size, tokens)]


def _convert(subject: Subject, total: int, show: Show) -> float | None:
    """Convert the weights if they were not yet, and say how long it took; None if they were or need not be."""
    if subject.device != "cpu":
        return None
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        show("converting", done, total)

    start = time.perf_counter()
    subject.convert(count)
    return time.perf_counter() - start if done else None


def _threads(subject: Subject) -> int:
    """Give the threads that the engine computes with; on a GPU the one that feeds it."""
    if subject.device != "cpu":
        return 1
    if subject.threads is not None:
        return subject.threads
    from openvino import Model
    from openvino import opset15 as op

    from hanmo.inference.openvino.engine import core, cpu_options

    one = op.parameter([1], np.float32)
    compiled = core().compile_model(Model([op.relu(one)], [one], "one"), "CPU", cpu_options(subject.weights, None))
    return int(compiled.get_property("INFERENCE_NUM_THREADS"))


def _start(conversion: float | None, starts: Sequence[dict[str, Any]], held: int) -> dict[str, Any]:
    middle = {name: median(start[name] for start in starts) for name in ("open_seconds", "first_token_seconds")}
    sizes = {
        f"{name}_bytes": None if starts[0][name] is None else max(start[name] for start in starts)
        for name in ("anonymous", "resident", "peak", "gpu_peak")
    }
    anonymous = sizes["anonymous_bytes"]
    return {
        "conversion_seconds": conversion,
        **middle,
        "torch_imported": any(start["torch"] for start in starts),
        **sizes,
        "anonymous_per_weights": None if anonymous is None else anonymous / held,
    }


def _lengths(times: dict[Case, Times]) -> dict[str, Any]:
    single = {case.tokens: of for case, of in times.items() if case.rows == 1}
    rows = []
    for tokens, of in single.items():
        prompt, step = median(of.prompts), median(of.steps)
        rows.append(
            {
                "tokens": tokens,
                "first_token_seconds": prompt,
                "prompt_tokens_per_second": tokens / prompt,
                "token_seconds": step,
                "tokens_per_second": 1 / step,
            }
        )
    return {"rows": rows, "longest_to_shortest": rows[-1]["token_seconds"] / rows[0]["token_seconds"]}


def _batches(times: dict[Case, Times]) -> dict[str, Any]:
    tokens = next((case.tokens for case in times if case.rows > 1), 0)
    found = {case.rows: median(of.steps) for case, of in times.items() if case.tokens == tokens}
    return {
        "tokens": tokens,
        "rows": [
            {"rows": rows, "step_seconds": step, "tokens_per_second": rows / step, "times_one": rows * found[1] / step}
            for rows, step in sorted(found.items())
        ],
    }


def _writing(writer: Pipeline, *, rounds: int, max_chars: int, show: Show) -> dict[str, Any] | None:
    """Write real text by the usual settings; None without a vocabulary that knows the prompt, or if a text is empty."""
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
        if number:
            speeds.append(len(written.text) / (time.perf_counter() - start))
    if not all(speeds):
        return None
    return {"prompt": PROMPT, "max_characters": max_chars, "characters_per_second": median(speeds)}
