"""The start: a fresh process opens a model and writes one token, and says how long that took and what it holds.

Knows processes and clocks. Run as a module it is that process.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hanmo import errors
from hanmo.bench.machine import memory
from hanmo.bench.subject import Subject

__all__ = ["measure_start"]


def measure_start(subject: Subject, prompt: list[int]) -> dict[str, Any]:
    """Start a process that opens the model, reads the prompt and writes a token.

    Returns "open_seconds", of opening alone, "first_token_seconds", from the start of Python to the token, "torch",
    whether torch was imported, and what `memory` tells of the process after the token.
    Raises the error of Hanmo's that the process raised, or CheckpointError if it failed otherwise.
    """
    words = json.dumps({**asdict(subject), "path": str(subject.path), "prompt": prompt})
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "hanmo.bench.start", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            seconds = time.perf_counter() - start
            said = process.stderr.read().strip()
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code or not line:
        kind, _, message = said.rpartition("\n")[2].partition(": ")
        module, _, name = kind.rpartition(".")
        if module == errors.__name__:
            raise getattr(errors, name)(message)
        raise errors.CheckpointError(
            f"a fresh process that opened {subject.path} ended with {code}: {said or 'is there memory enough?'}"
        )
    return {**json.loads(line), "first_token_seconds": seconds}


def _main(words: str) -> None:
    options = json.loads(words)
    prompt = options.pop("prompt")
    start = time.perf_counter()
    writer = Subject(**{**options, "path": Path(options["path"])}).open()
    opened = time.perf_counter() - start
    _, logits = writer.engine.prefill([prompt], room=1)
    int(logits[0].argmax())
    found: dict[str, Any] = {"open_seconds": opened, "torch": "torch" in sys.modules, **memory(), "gpu_peak": None}
    if options["device"].startswith("cuda"):
        import torch

        found["gpu_peak"] = torch.cuda.max_memory_allocated()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
