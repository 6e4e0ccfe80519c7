"""Write with Hanmo and with its peers by turns, in one run: time of a token, of a prompt, of a text; with ratios.

    python benchmarks/decode_peers.py --envs FOLDER       # all of it, on a synthetic GPT2_ML of 1.39 B parameters
    python benchmarks/decode_peers.py --envs FOLDER --parts decode prompt --peers llama.cpp
    python benchmarks/decode_peers.py --envs FOLDER --checkpoint GPT2/model.ckpt-100000 --parts article start

FOLDER gets a virtual environment for each peer, the GGUF files and the synthetic checkpoint (5.6 GB), all made once.
bert4keras loads the checkpoint; the other peers have random weights of its sizes. All are held to the same processors.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from peers.bench import HERE, Bench, find_checkpoint, find_vocabulary
from peers.environments import python_of
from peers.process import Turns, Worker, first_output, take_turns
from peers.report import Row, compared, markdown, single

from hanmo.bench.machine import describe
from hanmo.inference.fused.support import processor

HANMO = str(Path(sys.executable).with_name("hanmo"))
PROMPT = "今天天气不错"
LONG_PROMPT = PROMPT * 10  # 60 ids
FIRST, LAST = 128, 256  # the contexts of the time of a token
TASTE = {"do": "decode", "context": FIRST, "tokens": 16}
TRACED = 2  # steps in which TensorFlow traces bert4keras's graph: once for a length, once for any
LLAMA = {"llama.cpp": (1.3, 1.2, 3), "llama.cpp-native": (1.7, 1.9, 8), "llama.cpp-avx512": (1.7, 1.9, 8)}
"""llama.cpp's builds, and the goals beside each: a token in int8 and in int4, a prompt."""
COMPILED = ("llama.cpp-native", "llama.cpp-avx512")  # here, which takes a while
PEERS = (*LLAMA, "transformers", "torch", "bert4keras")


def decode(bench: Bench) -> Iterator[Row]:
    """Time a token at the contexts FIRST to LAST: everyone beside our int8, llama.cpp's Q4_0 beside our int4."""
    whole = [{"context": FIRST, "tokens": LAST - FIRST}] * bench.rounds
    each = (LAST - FIRST) // bench.rounds  # who is slow takes one slice of the range in a round
    slices = [{"context": FIRST + number * each, "tokens": each} for number in range(bench.rounds)]
    pairs: list[tuple[str, str, Callable[[], Worker], float | None, list[dict[str, int]]]] = []
    for peer, goals in LLAMA.items():
        for ours, kind, goal in (("int8", "Q8_0", goals[0]), ("int4", "Q4_0", goals[1])):
            pairs.append((peer, ours, partial(bench.fastest_llamacpp, peer, kind, **TASTE), goal, whole))
    for dtype in ("float32", "bfloat16"):
        pairs.append(("transformers", "int8", partial(bench.transformers, dtype), 5, slices))
        pairs.append(("torch", "int8", partial(bench.hanmo, dtype, "torch"), None, slices))
    for peer, ours, opened, goal, rounds in pairs:
        if peer in bench.peers:
            with _left_out_if_it_dies(peer), opened() as theirs, bench.hanmo(ours) as mine:
                yield _pair(f"A token at context {FIRST}–{LAST}", goal, mine, theirs, TASTE, rounds, unit="ms")


def prompt(bench: Bench) -> Iterator[Row]:
    """Time a prompt of 512 tokens beside llama.cpp."""
    quarter = {"do": "prompt", "tokens": min(512, bench.sizes["positions"]) // 4}
    for peer, (*_, goal) in LLAMA.items():
        for ours, kind in (("int8", "Q8_0"), ("int4", "Q4_0")) if peer in bench.peers else ():
            opened = partial(bench.fastest_llamacpp, peer, kind, **quarter)
            with _left_out_if_it_dies(peer), opened() as theirs, bench.hanmo(ours) as mine:
                request = {"do": "prompt", "tokens": 512}
                yield _pair("A prompt of 512 tokens", goal, mine, theirs, request, [{}] * bench.rounds, unit="s")


def engines(bench: Bench) -> Iterator[Row]:
    """Time a token in each kind of weights, and hold it against the bandwidth measured just before and after."""
    for kind, goal in (("int8", 0.85), ("int4", 0.75), ("bfloat16", None), ("float32", None)):
        before = bandwidth(bench)
        with bench.hanmo(kind) as mine:
            mine.ask(**TASTE)
            request = {**TASTE, "tokens": LAST - FIRST}
            times = take_turns([(mine, request)], [{}] * min(bench.rounds, 3)).answers[0]
            info = mine.ask("info")
        yield _share(f"Share of the read bandwidth: {kind}", goal, info, times, max(before, bandwidth(bench)))


def context(bench: Bench) -> Iterator[Row]:
    """Time a token around context 1,000 beside one around 16."""
    near, far = {**TASTE, "context": 8}, {**TASTE, "context": 992}
    yield _alone(
        bench, "A token at context 1,000 against context 16", 1.3, (near, far), ("context 16", "context 1,000")
    )


def batch(bench: Bench) -> Iterator[Row]:
    """Time the steps of 8 and of 16 rows beside those of a single one."""
    for rows, goal in ((8, 6), (16, 8)):
        many, one = ({**TASTE, "tokens": 64, "rows": count} for count in (rows, 1))
        title = f"Tokens a second at batch {rows} against batch 1"
        yield _alone(bench, title, goal, (many, one), (f"batch {rows}", "batch 1"))


def start(bench: Bench) -> Iterator[Row]:
    """Time a fresh `hanmo write` to its first character, the weights converted before; and its memory then."""
    models = [(bench.checkpoint, kind, LONG_PROMPT, 1.6) for kind in ("int8", "int4")]
    if bench.small is not None:
        models.append((bench.small, "int8", PROMPT, 1.0))
    for model, weights, prompt, goal in models:
        command = _write(model, weights, bench.vocabulary if model == bench.checkpoint else None, prompt)
        # The first of these converts, and brings the file into memory.
        found = [first_output(command, end=False, log=bench.log("start")) for _ in range(bench.rounds + 1)][1:]
        seconds = [each.first for each in found]
        info = {"name": f"hanmo write --weights {weights}, {model}", "bytes": _built(model, weights)}
        yield single(
            f"From the shell to the first character, prompt of {len(prompt)}: {weights}",
            goal,
            info,
            seconds,
            seconds,
            unit="s",
            most=True,
        )
        anonymous = [each.memory["RssAnon"] for each in found]
        yield single(
            f"Anonymous memory after the first token against the weights' bytes: {weights}",
            1.25 if model == bench.checkpoint else None,
            info,
            [each / 1e9 for each in anonymous],
            [each / info["bytes"] for each in anonymous],
            unit="GB",
            most=True,
            VmRSS_in_GB=statistics.median(each.memory["VmRSS"] for each in found) / 1e9,
        )


def article(bench: Bench) -> Iterator[Row]:
    """Write the article's text, by ours and by bert4keras, each in a fresh process; float32 against the bandwidth too.

    Ours counts from the shell to the end, loading included; bert4keras's once, and only its
    steps after those in which it traces its graph.
    """
    before, tokens = bandwidth(bench), bench.article_tokens
    theirs: list[float] = []
    if "bert4keras" in bench.peers:
        python = str(python_of("bert4keras", bench.envs))
        theirs = _script(bench, [python, str(HERE / "run_bert4keras.py")], tokens)[1]
    run = [HANMO, "run", "--threads", str(bench.threads)]
    ways: list[tuple[str, int, Callable[[int], tuple[float, list[float]]]]] = [
        ("hanmo write --weights int8", 3, lambda tokens: (_whole(bench, tokens), [])),
        ("hanmo run --weights int8 article.py", 3, partial(_script, bench, [*run, "--weights", "int8"])),
        ("hanmo run article.py (float32)", 2, partial(_script, bench, run)),
    ]
    for name, rounds, do in ways:
        found = []
        with _left_out_if_it_dies(name):
            do(8)  # converts the weights, and brings their file into memory
            found = [do(tokens) for _ in range(min(bench.rounds, rounds))]
        if not found:
            continue
        exact = "float32" in name
        if exact:
            steps = [[1000 * step for step in each[1:]] for _, each in found]
            info = {"name": name, "bytes": 4 * _parameters(bench)}
            yield _share(f"Share of the read bandwidth: {name}", 0.7, info, steps, max(before, bandwidth(bench)))
        if theirs:
            sides = [
                ({"name": name}, [[whole] for whole, _ in found]),
                ({"name": "bert4keras 0.11.5, tensorflow-cpu 2.15.1"}, [[sum(theirs[TRACED:])]] * len(found)),
            ]
            steps_of = {f"bert4keras_step_{at}_in_s": theirs[at] for at in (16, 128, 250) if at < tokens}
            steps_of["bert4keras_tracing_its_graph_not_counted_in_s"] = sum(theirs[:TRACED])
            title = f"{tokens} tokens of the article, bert4keras measured once: {name}"
            yield compared(title, None if exact else 30, sides, unit="s", **steps_of)


PARTS = {part.__name__: part for part in (decode, prompt, engines, context, batch, start, article)}


def bandwidth(bench: Bench) -> float:
    """Measure how many GB/s this machine reads now."""
    command = [sys.executable, str(HERE / "bandwidth.py"), str(bench.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@contextmanager
def _left_out_if_it_dies(peer: str) -> Iterator[None]:
    """Say why a peer was left out, such as a build whose instructions the processor refuses, and go on."""
    try:
        yield
    except RuntimeError as error:
        print(f"left out: {peer}: {error}", file=sys.stderr)


def _pair(
    title: str,
    goal: float | None,
    mine: Worker,
    theirs: Worker,
    request: dict[str, Any],
    rounds: Sequence[dict[str, Any]],
    *,
    unit: str,
) -> Row:
    """Let two workers take turns at a request, which each has done once before: the first time prepares."""
    for worker in (mine, theirs):
        worker.ask(**request)
    turns = take_turns([(mine, request), (theirs, request)], rounds)
    infos = [worker.ask("info") for worker in (mine, theirs)]
    values = [[each if isinstance(each, list) else [each] for each in answers] for answers in turns.answers]
    notes = {key: infos[1][key] for key in ("system", "flash attention", "attention") if key in infos[1]}
    notes["the one that waited used, of a processor"] = turns.idle
    sides = list(zip(infos, values, strict=True))
    return compared(f"{title}: {mine.name} against {theirs.name}", goal, sides, unit=unit, **notes)


def _alone(bench: Bench, title: str, goal: float, requests: Sequence[dict[str, Any]], names: Sequence[str]) -> Row:
    """Let int8 take turns at two requests; milliseconds of a token of one row."""
    with bench.hanmo("int8") as mine:
        for request in requests:
            mine.ask(**request)
        turns: Turns = take_turns([(mine, request) for request in requests], [{}] * bench.rounds)
        info = mine.ask("info")
    sides = []
    for name, request, answers in zip(names, requests, turns.answers, strict=True):
        rows = request.get("rows", 1)
        sides.append(
            ({**info, "name": f"{info['name']}, {name}"}, [[time / rows for time in each] for each in answers])
        )
    return compared(title, goal, sides, unit="ms a token", most=goal < 2)


def _share(title: str, goal: float | None, info: Row, times: Sequence[Sequence[float]], limit: float) -> Row:
    """Hold the milliseconds of a token against what reading the weights once takes at the limit, in GB/s."""
    medians = [statistics.median(each) for each in times]
    ratios = [info["bytes"] / (1e6 * median) / limit for median in medians]
    return single(title, goal, info, medians, ratios, unit="ms", measured_bandwidth_in_GB_a_second=limit)


def _whole(bench: Bench, tokens: int) -> float:
    """Write so many tokens with `hanmo write`; seconds of the whole process."""
    length = ["--stop", "none", "--max-tokens", str(tokens), "--max-chars", "100000", "--top-k", "5", "--json"]
    command = [*_write(bench.checkpoint, "int8", bench.vocabulary), *length]
    found = first_output(command, end=True, log=bench.log("write"))
    if (reason := json.loads(found.text)["reason"]) != "length":
        raise RuntimeError(f"the text ended by {reason!r} before it had {tokens} tokens")
    return found.whole


def _script(bench: Bench, command: list[str], tokens: int) -> tuple[float, list[float]]:
    """Run the article's script; seconds of the whole process, and of each step as the script's clock has them."""
    out = bench.envs.resolve() / "article.json"
    out.unlink(missing_ok=True)
    paths = (HERE / "article.py", bench.checkpoint.parent / "config.json", bench.checkpoint, bench.vocabulary)
    told = [*command, *map(str, paths), str(tokens), str(out)]
    found = first_output(told, end=True, log=bench.log("article"))
    return found.whole, json.loads(out.read_text("utf-8"))["steps"]


def _write(model: Path, weights: str, vocabulary: Path | None, prompt: str = PROMPT) -> list[str]:
    beside = [] if vocabulary is None else ["--tokenizer", str(vocabulary)]
    return [HANMO, "write", prompt, "--model", str(model), "--weights", weights, *beside]


def _built(model: Path, weights: str) -> int:
    """Give the bytes of the converted weights."""
    from hanmo.inference.openvino.engine import open_weights

    return open_weights(model, weights=weights).path.stat().st_size


def _parameters(bench: Bench) -> int:
    import torch

    from hanmo.inference.openvino.engine import open_weights
    from hanmo.model import Model

    with torch.device("meta"):
        model = Model(open_weights(bench.checkpoint, weights="int8").config)
    return sum(parameter.numel() for parameter in model.parameters())


def _machine(bench: Bench, given: Sequence[str]) -> Row:
    found = describe()
    return {
        "processor": f"{found['processor']}, {processor()}",
        "machine": f"{os.cpu_count()} processors, {found['memory_bytes'] / 2**30:.0f} GiB",
        "threads": bench.threads,
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "date": found["date"],
        "rounds": bench.rounds,
        "load at the start": os.getloadavg()[0],
        "bandwidth in GB/s": bandwidth(bench),
        "command": shlex.join(["python", *given]),
    }


def main() -> None:
    """Read the arguments, run the parts, print tables as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True, help="folder for environments, GGUF files and logs")
    parser.add_argument("--checkpoint", type=Path, help="prefix of a GPT2_ML checkpoint; without it one is made up")
    usual = [peer for peer in PEERS if peer not in COMPILED]
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=usual, help=f"default: {', '.join(usual)}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--article-tokens", type=int, default=256)
    parser.add_argument("--small", type=Path, help="a small model, for the start from the shell")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args()
    options.envs.mkdir(parents=True, exist_ok=True)
    checkpoint = find_checkpoint(options.checkpoint, options.envs)
    bench = Bench(
        checkpoint=checkpoint,
        vocabulary=find_vocabulary(checkpoint, options.envs),
        envs=options.envs,
        threads=options.threads,
        rounds=options.rounds,
        peers=tuple(options.peers),
        article_tokens=options.article_tokens,
        small=options.small,
    )
    hold(options.threads)
    if os.getloadavg()[0] > 0.5:
        print(f"others compute here too (load {os.getloadavg()[0]:.1f}): these times will mislead", file=sys.stderr)
    found = {**_machine(bench, sys.argv), "rows": []}
    print("\n".join(f"- {name}: {value}" for name, value in found.items() if name != "rows") + "\n", flush=True)
    for part in options.parts:
        for row in PARTS[part](bench):
            row["processor"] = found["processor"]
            found["rows"].append(row)
            print(markdown(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8")


def hold(threads: int) -> None:
    """Hold this process, and all that it starts from now on, to so many processors."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)


if __name__ == "__main__":
    main()
