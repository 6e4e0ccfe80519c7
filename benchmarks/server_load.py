"""Load of `hanmo serve` on the loopback interface: streams side by side, then clients that leave.

    python benchmarks/server_load.py                            # 200 streams for 60 s, then 1,000 clients that leave
    python benchmarks/server_load.py --streams 4 --seconds 5 --leaving 20

Starts a server with the package's small model, unless --url names one on this machine. Every token of every stream is
checked by its offset in the text, so that none is lost or sent twice. Prints one JSON object.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

PROMPTS = ("今天天气不错", "话说", "春眠不觉晓，处处闻啼鸟。" * 4, "床前明月光，疑是", "第一条", "学而时习之" * 12)
WARM = 10.0  # seconds before the memory is taken to be settled, at most a third of the run


@dataclass
class Found:
    """What the streams saw."""

    streams: int = 0
    tokens: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


@asynccontextmanager
async def asked(url: str, body: dict[str, Any], path: str = "/v1/completions") -> AsyncIterator[AsyncIterator[str]]:
    """Send a request on a connection of its own; gives the lines of the answer, status line first."""
    place, content = urlsplit(url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)

    async def lines() -> AsyncIterator[str]:
        while line := await reader.readline():
            yield line.decode().strip()

    head = f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    try:
        yield lines()
    finally:
        writer.close()


async def stream(url: str, seed: int, tokens: int, found: Found) -> None:
    """Take one stream and check that its tokens join without gap or overlap."""
    body = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "max_tokens": tokens, "logprobs": 0, "stream": True}
    begun = last = time.perf_counter()
    at, count, usage, ended = 0, 0, None, False
    async with asked(url, {**body, "stream_options": {"include_usage": True}}) as lines:
        status = (await anext(lines, "no answer")).split(" ")[1]
        if status == "429":
            found.refused += 1
            return
        async for line in lines:
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                break
            event = json.loads(line[6:])
            usage = event.get("usage", usage)
            for choice in event.get("choices", ()):
                now = time.perf_counter()
                if choice["logprobs"]["tokens"]:
                    (found.between if count else found.first).append(now - (last if count else begun))
                    last = now
                for token, start in zip(*(choice["logprobs"][name] for name in ("tokens", "text_offset")), strict=True):
                    found.lost += start > at
                    found.doubled += start < at
                    at = start + len(token)
                    count += 1
    found.streams += 1
    found.tokens += count
    # The end id is counted and not sent.
    found.lost += not ended or usage is None or not 0 <= usage["completion_tokens"] - count <= 1


async def keep_streaming(url: str, number: int, until: float, tokens: int, found: Found) -> None:
    """Take one stream after the other."""
    seed = number * 100_000
    while time.monotonic() < until:
        await stream(url, seed, tokens, found)
        seed += 1


async def leave(url: str, seed: int, gate: asyncio.Semaphore) -> None:
    """Ask, streamed or not, and close the connection after a random time."""
    draw = random.Random(seed)
    body = {"prompt": draw.choice(PROMPTS), "seed": seed, "n": draw.choice((1, 1, 3)), "max_tokens": 200}
    async with gate, asked(url, {**body, "stream": draw.random() < 0.5}) as lines:
        try:
            await asyncio.wait_for(_read(lines), draw.expovariate(4))
        except asyncio.TimeoutError:
            pass


async def _read(lines: AsyncIterator[str]) -> None:
    async for _ in lines:
        pass


def metric(url: str, name: str) -> float:
    """Read one number of the server's."""
    with urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))


def resident(process: int) -> int:
    """Return a process's resident memory that no file backs, in bytes."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


async def watched(process: int | None, until: float) -> list[int]:
    """Take the server's memory once a second."""
    sizes = []
    while process is not None and time.monotonic() < until:
        sizes.append(resident(process))
        await asyncio.sleep(1)
    return sizes


async def load(url: str, process: int | None, given: argparse.Namespace) -> dict[str, Any]:
    """Run both parts, and return the numbers."""
    found, until = Found(), time.monotonic() + given.seconds
    begun = time.monotonic()
    streams = (keep_streaming(url, number, until, given.tokens, found) for number in range(given.streams))
    sizes, *_ = await asyncio.gather(watched(process, until), *streams)
    seconds = time.monotonic() - begun
    gate = asyncio.Semaphore(given.streams)
    await asyncio.gather(*(leave(url, seed, gate) for seed in range(given.leaving)))
    left = time.monotonic()
    while (
        rows := metric(url, "hanmo_rows_running") + metric(url, "hanmo_rows_waiting")
    ) and time.monotonic() < left + 30:
        await asyncio.sleep(0.05)
    settled = sizes[int(min(WARM, given.seconds / 3)) :]
    return {
        "streams": found.streams,
        "tokens": found.tokens,
        "tokens a second": round(found.tokens / seconds, 1),
        "refused": found.refused,
        "lost": found.lost,
        "doubled": found.doubled,
        "time to first token, s": percentiles(found.first),
        "time between tokens, s": percentiles(found.between),
        "memory after warm-up and at the end, MiB": [round(size / 2**20) for size in (*settled[:1], *settled[-1:])],
        "highest memory after warm-up, MiB": round(max(settled) / 2**20) if settled else None,
        "memory after clients that left, MiB": None if process is None else round(resident(process) / 2**20),
        "clients that left": given.leaving,
        "rows left behind": rows,
        "seconds until their rows were free": round(time.monotonic() - left, 2),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and 95th percentile."""
    cuts = statistics.quantiles(values, n=20) if len(values) > 1 else [0.0] * 19
    return {"p50": round(cuts[9], 4), "p95": round(cuts[18], 4)}


@contextmanager
def served(given: argparse.Namespace) -> Any:
    """Start a server; gives its URL and process."""
    if given.url is not None:
        if urlsplit(given.url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise SystemExit(f"--url is {given.url}; expected a server on the loopback interface")
        yield given.url, None
        return
    queue = str(max(256, 4 * given.streams))
    command = [sys.executable, "-m", "hanmo.cli", "serve", "--port", "0", "--max-queue", queue, *given.serve]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://\S+\d", line)
        if address is None:
            raise SystemExit(f"the server does not start: {line}{process.stderr.read()}")
        try:
            yield address[0], process.pid
        finally:
            process.terminate()


def main() -> None:
    """Read the arguments and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server on this machine; without it one is started")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="options of hanmo serve; the last option")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=32, help="of each text")
    parser.add_argument("--leaving", type=int, default=1000, help="clients that leave")
    given = parser.parse_args()
    with served(given) as (url, process):
        print(json.dumps(asyncio.run(load(url, process, given)), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
