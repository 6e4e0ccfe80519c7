"""Eight clients of `hanmo serve` beside llama.cpp's server, and beside Hanmo's own static batches.

    python benchmarks/server_peers.py --envs FOLDER        # a synthetic GPT2_ML of 1.39 B parameters, int8 and Q8_0
    python benchmarks/server_peers.py --envs FOLDER --checkpoint GPT2/model.ckpt-100000 --rounds 1 --peers

Prompts and texts differ in length by eight times, and each client asks again as soon as it is answered. FOLDER is that
of decode_peers.py. Both servers are open at once and take turns; texts are greedy and never end by themselves.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from peers.bench import Bench, find_checkpoint, find_vocabulary
from peers.process import SETTLE
from peers.report import Row, compared, markdown, single
from peers.worker import random_ids
from server_load import asked

PROMPTS = (16, 128, 32, 64, 16, 128, 64, 32)  # ids, a client each
TEXTS = (128, 16, 64, 32, 32, 64, 16, 128)
NINTH = 128
GOAL, STATIC_GOAL = 1.3, 2.5


@dataclass(frozen=True)
class Side:
    """A server.   path: of its completions.   fields: what a request says besides prompt and length."""

    name: str
    url: str
    path: str
    length: str
    fields: dict[str, Any]
    bytes: int

    async def ask(self, prompt: Sequence[int], tokens: int) -> list[float]:
        """Generate a text; returns the times at which its pieces came. Raises RuntimeError if it is not as long."""
        body = {"prompt": list(prompt), self.length: tokens, "stream": True, **self.fields}
        times, written = list[float](), 0
        async with asked(self.url, body, self.path) as lines:
            status = await anext(lines)
            if " 200 " not in status:
                raise RuntimeError(f"{self.name} answered {status}: {[line async for line in lines][-1]}")
            async for line in lines:
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                written = event.get("tokens_predicted") or (event.get("usage") or {}).get("completion_tokens") or 0
                if event.get("choices", True):
                    times.append(time.perf_counter())
                if written and event.get("stop", True):
                    break
        if written != tokens:
            raise RuntimeError(f"{self.name} generated {written} tokens, {tokens} were asked for")
        return times

    async def clients(self, work: Sequence[tuple[Sequence[int], int]], requests: int) -> float:
        """Let each client ask so many times; returns seconds."""

        async def client(number: int) -> None:
            for turn in range(requests):
                await self.ask(*work[(number + turn) % len(work)])

        begun = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(len(work))))
        return time.perf_counter() - begun

    async def ninth(self, work: Sequence[tuple[Sequence[int], int]], prompt: Sequence[int]) -> dict[str, float]:
        """Time the first token of one more client, a prompt alone, and a step of eight rows."""
        begun = time.perf_counter()
        alone = (await self.ask(prompt, 1))[0] - begun
        others = [asyncio.create_task(self.ask(ids, max(TEXTS))) for ids, _ in work]
        await asyncio.sleep(alone * len(work))
        begun = time.perf_counter()
        first = (await self.ask(prompt, 1))[0] - begun
        times = await asyncio.gather(*others)
        steps = [after - before for each in times for before, after in pairwise(each)]
        return {"ninth": first, "prompt alone": alone, "step": statistics.median(steps)}


@contextmanager
def hanmo(bench: Bench, weights: str) -> Iterator[Side]:
    """Start `hanmo serve` on the checkpoint."""
    options = ["--weights", weights, "--threads", str(bench.threads), "--port", "0", "--max-rows", "9"]
    command = [sys.executable, "-m", "hanmo.cli", "serve", "--model", str(bench.checkpoint), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        if (address := re.search(r"http://\S+\d", line)) is None:
            raise SystemExit(f"the server does not start: {line}{process.stderr.read()}")
        from hanmo.inference.openvino.engine import open_weights

        size = open_weights(bench.checkpoint, weights=weights).path.stat().st_size
        try:
            ends = {
                str(id): -100 for id in range(min(110, bench.sizes["vocab_size"] // 2))
            }  # marks, the end among them
            fields = {"temperature": 0, "logit_bias": ends, "stream_options": {"include_usage": True}}
            yield Side(f"hanmo serve {weights}", address[0], "/v1/completions", "max_tokens", fields, size)
        finally:
            process.terminate()


@contextmanager
def llamacpp(bench: Bench, kind: str) -> Iterator[Side]:
    """Start llama.cpp's server with a slot for each client and one for the ninth."""
    with bench.llamacpp("llama.cpp", kind, "on", slots=len(PROMPTS)) as worker:
        info = worker.ask("info")
        fields = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "cache_prompt": False}
        yield Side(f"{info['name']} {kind}", worker.ask("address"), "/completion", "n_predict", fields, info["bytes"])


def throughput(bench: Bench, ours: Side, theirs: Side, work: Any, requests: int) -> Row:
    """Let the servers take turns, and compare milliseconds of a token of all clients together."""
    tokens = sum(work[(number + turn) % len(work)][1] for number in range(len(work)) for turn in range(requests))
    times: dict[str, list[list[float]]] = {ours.name: [], theirs.name: []}
    for side in (ours, theirs):
        asyncio.run(side.clients(work, 1))
    for number in range(bench.rounds):
        for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            time.sleep(SETTLE)
            times[side.name].append([1000 * asyncio.run(side.clients(work, requests)) / tokens])
    sides = [({"name": side.name, "bytes": side.bytes}, times[side.name]) for side in (ours, theirs)]
    return compared(f"{len(work)} clients of unequal lengths", GOAL, sides, unit="ms a token of all")


def static(bench: Bench, ours: Side, weights: str, work: Any, requests: int) -> Row:
    """Compare with batches of eight that begin together; the server's time is taken in the same rounds."""
    prompts, lengths = [ids for ids, _ in work], [tokens for _, tokens in work]
    tokens = sum(lengths)
    mine, batches = [], []
    with bench.hanmo(weights) as worker:
        worker.ask("static", prompts=prompts, tokens=lengths)
        for _ in range(bench.rounds):
            time.sleep(SETTLE)
            batches.append([1000 * worker.ask("static", prompts=prompts, tokens=lengths) / tokens])
            time.sleep(SETTLE)
            mine.append([1000 * asyncio.run(ours.clients(work, requests)) / tokens / requests])
        info = worker.ask("info")
    sides = [({"name": ours.name, "bytes": ours.bytes}, mine), ({**info, "name": "Hanmo's static batches"}, batches)]
    return compared("Against static batches of 8", STATIC_GOAL, sides, unit="ms a token of all")


def first_token(bench: Bench, side: Side, work: Any, prompt: Sequence[int]) -> Row:
    """Hold the first token of a ninth client against its prompt alone and two steps of the others."""
    found = [asyncio.run(side.ninth(work, prompt)) for _ in range(bench.rounds)]
    ratios = [each["ninth"] / (each["prompt alone"] + 2 * each["step"]) for each in found]
    notes = {name: statistics.median(each[name] for each in found) for name in ("prompt alone", "step")}
    info = {"name": side.name, "bytes": side.bytes}
    title = "First token of a ninth client against its prompt alone and two steps"
    return single(title, 1.0, info, [each["ninth"] for each in found], ratios, unit="s", most=True, **notes)


def with_vocabulary(checkpoint: Path, envs: Path) -> Path:
    """Link a checkpoint's files and its vocabulary into a folder; returns its prefix there."""
    folder = envs.resolve() / "served"
    folder.mkdir(exist_ok=True)
    for path in (*checkpoint.parent.glob(f"{checkpoint.name}.*"), checkpoint.parent / "config.json"):
        _link(folder / path.name, path)
    _link(folder / "vocab.txt", find_vocabulary(checkpoint, envs))
    return folder / checkpoint.name


def _link(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target.resolve())


def main() -> None:
    """Read the arguments, run the parts, print tables as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True, help="folder for environments, GGUF files and logs")
    parser.add_argument("--checkpoint", type=Path, help="prefix of a GPT2_ML checkpoint; without it one is made up")
    parser.add_argument("--weights", default="int8", choices=("int8", "int4"))
    parser.add_argument("--peers", nargs="*", choices=("llama.cpp",), default=["llama.cpp"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3, help="of each client in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=1, help="divide all lengths by this, for a trial")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    given.envs.mkdir(parents=True, exist_ok=True)
    checkpoint = with_vocabulary(find_checkpoint(given.checkpoint, given.envs), given.envs)
    bench = Bench(
        checkpoint=checkpoint,
        vocabulary=checkpoint.parent / "vocab.txt",
        envs=given.envs,
        threads=given.threads,
        rounds=given.rounds,
        peers=tuple(given.peers),
        article_tokens=0,
        small=None,
    )
    vocab = bench.sizes["vocab_size"]
    lengths = [
        (max(1, ids // given.shrink), max(1, tokens // given.shrink))
        for ids, tokens in zip(PROMPTS, TEXTS, strict=True)
    ]
    work = [(random_ids(ids, vocab, seed), tokens) for seed, (ids, tokens) in enumerate(lengths)]
    rows: list[Row] = []
    with ExitStack() as stack:
        ours = stack.enter_context(hanmo(bench, given.weights))
        if "llama.cpp" in bench.peers:
            theirs = stack.enter_context(llamacpp(bench, {"int8": "Q8_0", "int4": "Q4_0"}[given.weights]))
            rows.append(throughput(bench, ours, theirs, work, given.requests))
            print(markdown(rows[-1]), flush=True)
        rows.append(static(bench, ours, given.weights, work, given.requests))
        print(markdown(rows[-1]), flush=True)
        rows.append(first_token(bench, ours, work, random_ids(max(1, NINTH // given.shrink), vocab, 99)))
        print(markdown(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    main()
