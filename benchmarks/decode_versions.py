"""Time a token of T5 1.1 base and of RoFormer base as UniLM, now and in another version, by turns in one run.

    git worktree add /tmp/base REVISION
    python benchmarks/decode_versions.py FOLDER --base /tmp/base

FOLDER gets the checkpoints, random weights of these shapes; their converted weights are kept where Hanmo keeps them.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from decode_peers import FIRST, TASTE, hold
from peers.bench import HERE
from peers.process import Worker, take_turns
from peers.report import Row, compared, markdown

import hanmo
from hanmo.bench.machine import describe
from hanmo.families import FAMILIES
from hanmo.model import Model

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
T5 = BASE | {
    "vocab_size": 50_000,
    "attention_head_size": 64,
    "intermediate_size": 2048,
    "hidden_act": ["gelu", "linear"],
}
ROFORMER = BASE | {"vocab_size": 12_000, "intermediate_size": 3072, "hidden_act": "gelu", "type_vocab_size": 2}
MODELS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "T5 1.1 base": ("t5.1.1", T5, None),
    "RoFormer base as UniLM": ("roformer", ROFORMER, "prefix"),
}
ENGINES = {"float32": "torch", "int8": "openvino", "int4": "openvino"}
GOAL = 1.5


def checkpoint(folder: Path, family: str, sizes: dict[str, Any]) -> Path:
    """Find the random checkpoint of a family, or write it."""
    path = folder / family
    if not path.exists():
        names = FAMILIES[family].tensorflow
        assert names is not None
        hanmo.save(Model(names.config(sizes)).initialize(0), path)
    return path


def measured(options: argparse.Namespace, name: str, weights: str) -> Row:
    """Let the two versions take turns at decoding with these weights."""
    family, sizes, mask = MODELS[name]
    path = checkpoint(options.folder, family, sizes | (options.sizes or {}))
    told = {"checkpoint": str(path), "weights": weights, "engine": ENGINES[weights], "threads": options.threads}
    request = {**TASTE, "tokens": options.tokens}
    with ExitStack() as stack:
        workers = []
        for version, source in (("now", HERE.parents[1]), ("base", options.base.resolve())):
            given, log = told | {"mask": mask, "source": str(source)}, options.folder / f"{version}.log"
            worker = Worker(version, sys.executable, HERE / "run_hanmo.py", given, log)
            workers.append(stack.enter_context(worker))
            worker.ask(**request)  # the first time prepares
        answers = take_turns([(worker, request) for worker in workers], [{}] * options.rounds).answers
        infos = [{**worker.ask("info"), "name": worker.name} for worker in workers]
    title = f"{name}, {weights}: a token at context {FIRST}"
    return compared(title, GOAL, list(zip(infos, answers, strict=True)), unit="ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="a checkout of the version to compare with")
    parser.add_argument("--weights", nargs="+", choices=ENGINES, default=["float32", "int8"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=json.loads, help="JSON of config.json's fields, to try the script")
    options = parser.parse_args()
    hold(options.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for the versions, as the commands do
    options.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(describe(), ensure_ascii=False), flush=True)
    for name in MODELS:
        for weights in options.weights:
            print(markdown(measured(options, name, weights)), flush=True)


if __name__ == "__main__":
    main()
