"""Measure decoding on a GPU beside transformers, by turns, on random weights; print one JSON object.

    python benchmarks/gpu_decode.py --out gpu_decode.json
    python benchmarks/gpu_decode.py --weights int8 --rows 1 --no-peer
    python benchmarks/gpu_decode.py --weights bfloat16 --rows 32 --no-peer --requests 128

The default is GPT2_ML's shape, 1.39 B parameters. Both sides draw from the five likeliest ids, and every id comes to
the processor: (time of all tokens - time of the first) / (tokens - 1), medians of the rounds. The peer is
GPT2LMHeadModel of the same sizes in bfloat16 (`generate`, its defaults). `share_of_bandwidth` counts the bytes of
weights that a step reads, nothing of the cache, against the faster of copying and summing 1 GiB in this run.

--requests: so many unequal prompts and ends by the scheduler too, `rows` at once: joined in one step, and in turn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.generate import Limits, Sampling, sample
from hanmo.generate.scheduler import Event, Failed, RowRequest, Scheduler
from hanmo.inference.cuda.blocks import Int8Linear, quantized
from hanmo.inference.cuda.engine import StaticEngine
from hanmo.model import Model

TINY = {
    "num_layers": 2,
    "hidden_size": 64,
    "vocab_size": 100,
    "positions": 64,
    "prompt": 8,
    "tokens": 6,
    "rounds": 2,
    "rows": [1, 2],
    "requests": 4,
}


def main() -> None:
    """Read the arguments, measure by turns, print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = {
        "num_layers": 48,
        "hidden_size": 1536,
        "vocab_size": 21128,
        "positions": 1024,
        "prompt": 128,
        "tokens": 128,
        "rounds": 5,
        "requests": 0,
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--weights", nargs="+", choices=("bfloat16", "int8"), default=["bfloat16", "int8"])
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see the script run; no figures to report")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("gpu_decode.py needs a CUDA GPU, and torch finds none here; --device cpu --tiny tries it without")
    if given.tiny:
        vars(given).update(TINY)
    text = json.dumps(measure(given), indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", "utf-8")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Time every kind of weights and the peer at every number of rows, by turns."""
    config = gpt2_ml_config(
        vocab_size=given.vocab_size,
        num_layers=given.num_layers,
        hidden_size=given.hidden_size,
        positions=given.positions,
    )
    with torch.device(given.device):
        model = Model(config).initialize(0).to(torch.bfloat16).eval()
    models = {kind: quantized(model) if kind == "int8" else model for kind in given.weights}
    engines = {kind: StaticEngine(used) for kind, used in models.items()}
    weights = {kind: read_bytes(used) for kind, used in models.items()}
    sides = {kind: ours(engine, given) for kind, engine in engines.items()}
    if given.peer:
        sides["transformers"] = peer(given)
    bandwidth = read_speed(given.device, 2**20 if given.tiny else 2**30)
    began = {name: warm_up(side, given) for name, side in sides.items()}
    times: dict[tuple[str, int], list[float]] = {(name, rows): [] for name in sides for rows in given.rows}
    for _ in range(given.rounds):
        for (name, rows), found in times.items():
            first, whole = (seconds(partial(sides[name], rows, n), given.device) for n in (1, given.tokens))
            found.append((whole - first) / (given.tokens - 1))
    steps = {key: statistics.median(found) for key, found in times.items()}
    cases = [
        {"side": name, "rows": rows, "ms_per_step": step * 1e3, "tokens_per_second": rows / step}
        | ({"share_of_bandwidth": weights[name] / step / bandwidth["best"]} if name in weights else {})
        | ({"times_faster_than_peer": steps["transformers", rows] / step} if given.peer else {})
        for (name, rows), step in steps.items()
    ]
    for case in cases:
        if case["side"] in engines:
            case["ms_per_step_without_choosing"] = steps_alone(engines[case["side"]], case["rows"], given) * 1e3
    cuda = given.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(given.device) if cuda else "cpu, figures mean nothing",
        "torch": torch.__version__,
        "sizes": {name: value for name, value in vars(given).items() if name not in ("device", "out")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight_bytes_read": weights,
        "bytes_per_second": bandwidth,
        "first_use_seconds": began,
        "peak_bytes": torch.cuda.max_memory_allocated(given.device) if cuda else None,
        "cases": cases,
        "requests": [scheduled(engines[kind], rows, given) | {"side": kind} for kind in engines for rows in given.rows]
        if given.requests
        else [],
    }


def ours(engine: StaticEngine, given: argparse.Namespace) -> Callable[[int, int], None]:
    """Give a function that writes so many tokens in so many rows with the engine of fixed shapes."""

    def run(rows: int, tokens: int) -> None:
        limits = Limits(max_tokens=tokens)
        for _ in sample(engine, [prompt(given)], n=rows, seed=0, sampling=Sampling(top_k=5), limits=limits):
            pass

    return run


def steps_alone(engine: StaticEngine, count: int, given: argparse.Namespace) -> float:
    """Time the steps by themselves, with the same ids again and again: the median of the rounds."""
    found = []
    for _ in range(given.rounds):
        rows, _ = engine.prefill([prompt(given)], room=given.tokens)
        rows.reorder([0] * count)
        ids = torch.ones(count, dtype=torch.long, device=given.device)
        rows.step(ids)
        took = seconds(lambda rows=rows, ids=ids: [rows.step(ids) for _ in range(given.tokens - 1)], given.device)
        found.append(took / (given.tokens - 1))
    return statistics.median(found)


def scheduled(engine: StaticEngine, rows: int, given: argparse.Namespace) -> dict[str, float]:
    """Time requests of different prompts, from an eighth of `prompt` and of `tokens` ids up, joined and in turn."""
    in_turn = SimpleNamespace(vocab_size=engine.vocab_size, max_positions=engine.max_positions, prefill=engine.prefill)
    random = np.random.default_rng(0)
    requests = [
        RowRequest(
            prompt=random.integers(1, given.vocab_size, random.integers(given.prompt // 8, given.prompt + 1)).tolist(),
            seed=seed,
            sampling=Sampling(top_k=5),
            limits=Limits(max_tokens=int(random.integers(-(-given.tokens // 8), given.tokens + 1))),
        )
        for seed in range(given.requests)
    ]
    count = sum(each.limits.max_tokens or 0 for each in requests)

    def run(scheduler: Scheduler) -> None:
        inbox: SimpleQueue[Event] = SimpleQueue()
        for each in requests:
            scheduler.submit([each], inbox.put)
        events = [inbox.get(timeout=300) for _ in range(count + len(requests))]  # ids and ends
        assert not any(isinstance(each, Failed) for each in events), "a request has failed"

    found = {}
    for way, side in (("joined", engine), ("in_turn", in_turn)):
        scheduler = Scheduler(side, max_rows=rows, max_queue=len(requests))
        times = [seconds(partial(run, scheduler), given.device) for _ in range(1 + given.rounds)]
        scheduler.close(drain=True)
        found[f"tokens_per_second_{way}"] = count / statistics.median(times[1:])
        found[f"first_use_seconds_{way}"] = times[0]
    return {"rows": rows, **found}


def peer(given: argparse.Namespace) -> Callable[[int, int], None]:
    """Give a function that writes as much with transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    names = {"vocab_size": "vocab_size", "n_positions": "positions", "n_embd": "hidden_size", "n_layer": "num_layers"}
    sizes = {theirs: getattr(given, name) for theirs, name in names.items()}
    config = GPT2Config(**sizes, n_head=max(1, given.hidden_size // 64), bos_token_id=None, eos_token_id=None)
    with torch.device(given.device):
        model = GPT2LMHeadModel(config).to(torch.bfloat16).eval()

    def run(rows: int, tokens: int) -> None:
        ids = torch.tensor([prompt(given)] * rows, device=given.device)
        mask = torch.ones_like(ids)
        drawn = {"do_sample": True, "top_k": 5, "max_new_tokens": tokens, "pad_token_id": 0}
        model.generate(ids, attention_mask=mask, **drawn).tolist()

    return run


def prompt(given: argparse.Namespace) -> list[int]:
    """Give the ids that every text goes on from."""
    return torch.randint(1, given.vocab_size, (given.prompt,), generator=torch.Generator().manual_seed(0)).tolist()


def warm_up(side: Callable[[int, int], None], given: argparse.Namespace) -> float:
    """Run every case once, compiling and capturing what it needs, and give the seconds."""
    return sum(seconds(partial(side, rows, given.tokens), given.device) for rows in given.rows)


def read_bytes(model: Model) -> int:
    """Count the bytes that a step reads of the weights: all but the rows of tables that it looks up."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, Int8Linear))]
    tensors = [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
    return sum(tensor.nbytes for tensor in (*tensors, model.token.weight))


def read_speed(device: str, size: int) -> dict[str, float]:
    """Measure bytes a second from the device's memory: summing a buffer, and copying it (read and written)."""
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    ways = {"sum": (source.sum, size), "copy": (partial(target.copy_, source), 2 * size)}
    speeds = {name: nbytes / min(seconds(way, device) for _ in range(20)) for name, (way, nbytes) in ways.items()}
    return speeds | {"best": max(speeds.values())}


def seconds(work: Callable[[], object], device: str) -> float:
    """Time some work, all of it that a GPU still has to do included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
