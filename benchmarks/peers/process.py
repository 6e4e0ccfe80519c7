"""Worker processes and their turns: one measures, the others wait for a line and do nothing.

Knows processes and clocks; knows neither what the workers run nor what the numbers mean.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

SETTLE = 0.3
"""Seconds between turns: threads that wait for more work by spinning have gone to sleep by then."""

__all__ = ["FirstOutput", "Turns", "Worker", "first_output", "take_turns"]


class Worker:
    """A process that answers requests; leave the `with` block and it ends.

    log: the file that gets what it and its libraries print. Raises RuntimeError with the log's end if it dies.
    """

    def __init__(self, name: str, python: str | Path, script: Path, options: dict[str, Any], log: Path) -> None:
        self.name, self._log = name, log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), str(script), json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            )  # fmt: skip
        try:
            self.load = self._answer()["load"]
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a request and wait for its result."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; reading says so, with its last words
        return self._answer()

    def processor_seconds(self) -> float:
        """Give the processor time that all its threads have used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()  # its input ends, and with it the worker

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self.name} ended with {code}: {_last_words(self._log)}")
        return json.loads(line)["result"]


@dataclass(frozen=True)
class Turns:
    """What workers answered, round by round, and how busy the waiting ones were: 1.0 is one processor."""

    answers: list[list[Any]]  # [worker][round]
    idle: float


def take_turns(sides: Sequence[tuple[Worker, dict[str, Any]]], rounds: Sequence[dict[str, Any]]) -> Turns:
    """Ask every worker once a round, the order turned round each time; a round's dict goes over each request."""
    answers: list[list[Any]] = [[] for _ in sides]
    idle = 0.0
    everyone = list({id(worker): worker for worker, _ in sides}.values())
    for number, more in enumerate(rounds):
        order = range(len(sides)) if number % 2 == 0 else range(len(sides) - 1, -1, -1)
        for place in order:
            worker, request = sides[place]
            waiting = [other for other in everyone if other is not worker]
            time.sleep(SETTLE)
            before, begun = [other.processor_seconds() for other in waiting], time.perf_counter()
            answers[place].append(worker.ask(**{**request, **more}))
            wall = time.perf_counter() - begun
            for other, seconds in zip(waiting, before, strict=True):
                idle = max(idle, (other.processor_seconds() - seconds) / wall)
    return Turns(answers, idle)


@dataclass(frozen=True)
class FirstOutput:
    """When a command began to speak, what memory it had then, and when it ended."""

    first: float  # seconds
    whole: float
    memory: dict[str, int]  # bytes
    text: str


def first_output(command: Sequence[str], *, end: bool, log: Path) -> FirstOutput:
    """Start a command and wait for the first bytes on its standard output.

    end: False stops it then, as Ctrl-C does.   Raises RuntimeError if it fails.
    """
    begun = time.perf_counter()
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        assert process.stdout is not None
        out = os.read(process.stdout.fileno(), 1 << 16)
        first = time.perf_counter() - begun
        memory = _memory(process.pid) if out else {}
        if not end:
            process.send_signal(signal.SIGINT)
        out += process.stdout.read()
        code = process.wait()
    if code not in ((0,) if end else (0, 130, -signal.SIGINT)) or not memory:
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {_last_words(log)}")
    return FirstOutput(first, time.perf_counter() - begun, memory, out.decode("utf-8", "replace"))


def _memory(process: int) -> dict[str, int]:
    words = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text("utf-8").splitlines())
    return {name: 1024 * int(words[name].split()[0]) for name in ("VmRSS", "RssAnon") if name in words}


def _last_words(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    said = [line.strip(" │") for line in lines if any(letter.isalnum() for letter in line)]
    return f"{' / '.join(said[-3:])} (all of it in {log})"
