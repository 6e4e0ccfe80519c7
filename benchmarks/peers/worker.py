"""What every worker does alike: requests come in as JSON lines, answers go out as JSON lines, nothing spins between.

Standard library only, for it runs in every peer's own environment. Knows nothing of any model.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["memory", "random_ids", "serve", "steps", "timed"]


def serve(open_model: Callable[[dict[str, Any]], dict[str, Callable[..., Any]]]) -> None:
    """Open what argv[1], a JSON object, describes; then answer each request by the function of its name.

    A request is {"do": NAME, **arguments}, an answer {"result": …}. What libraries print goes to stderr.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    begun = time.perf_counter()
    handlers = open_model(json.loads(sys.argv[1]))
    print(json.dumps({"result": {"load": time.perf_counter() - begun}}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        result = handlers[request.pop("do")](**request)
        print(json.dumps({"result": result}), file=out, flush=True)


def random_ids(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Give the ids of a prompt: the same for every peer, past the marks that come first in a vocabulary."""
    low = min(110, vocab_size // 2)
    return random.Random(seed).choices(range(low, vocab_size), k=count)


def timed(do: Callable[[], Any]) -> float:
    """Do it once; seconds."""
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def steps(each: Iterator[Any], count: int) -> list[float]:
    """Take so many steps; milliseconds of each."""
    return [1000 * timed(lambda: next(each)) for _ in range(count)]


def memory() -> dict[str, int]:
    """Give this process's resident memory in bytes: VmRSS, and RssAnon, which no file backs."""
    with open("/proc/self/status") as status:
        found = dict(line.split(":", 1) for line in status)
    return {name: 1024 * int(found[name].split()[0]) for name in ("VmRSS", "RssAnon")}
