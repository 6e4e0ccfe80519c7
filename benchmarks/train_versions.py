"""Time training steps on a CPU in several precisions, and in another version, by turns in one run.

python benchmarks/train_versions.py                         the small model's shape, AdamW: mixed against float32
python benchmarks/train_versions.py --shape mega --layers 12 --rounds 2      12 of GPT2_ML 1.39 B's 48 layers
git worktree add /tmp/base REVISION
python benchmarks/train_versions.py --base /tmp/base --precisions mixed      this version against another
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin would slow the side whose turn it is
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the commands do

from peers.bench import HERE
from peers.process import Worker, take_turns
from peers.report import compared, markdown

from hanmo.bench.machine import describe

SHAPES = {
    "small": {
        "layers": 8, "hidden_size": 448, "vocab_size": 8000, "positions": 1024, "rows": 4, "optimizer": "adamw",
    },
    "mega": {
        "layers": 48, "hidden_size": 1536, "vocab_size": 21_130, "positions": 1024, "rows": 1,
        "optimizer": "adafactor-gpt2-ml",
    },
    "tiny": {
        "layers": 1, "hidden_size": 64, "vocab_size": 500, "positions": 32, "rows": 2, "optimizer": "adafactor-gpt2-ml",
    },
}  # fmt: skip
GOAL = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--layers", type=int, help="in place of the shape's")
    parser.add_argument("--rows", type=int, help="in place of the shape's")
    parser.add_argument("--precisions", nargs="+", default=["mixed", "bfloat16"], help="beside float32")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--base", type=Path, help="a checkout of the version to compare with, in the same precision")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of each turn")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    shape = SHAPES[options.shape] | {
        name: getattr(options, name) for name in ("layers", "rows") if getattr(options, name)
    }
    shape |= {"threads": options.threads, "recompute": options.recompute}
    now = HERE.parents[1]
    if options.base is None:
        precisions = [each for each in options.precisions if shape["optimizer"] != "adamw" or each != "bfloat16"]
        sides = [(now, precision) for precision in (*precisions, "float32")]
    else:
        sides = list(product((now, options.base.resolve()), options.precisions))
    print(json.dumps(describe() | {"shape": shape}, ensure_ascii=False), flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = []
        for source, precision in sides:
            name = precision if options.base is None else f"{'now' if source == now else 'base'}, {precision}"
            given = shape | {"source": str(source), "precision": precision}
            worker = Worker(name, sys.executable, HERE / "run_training.py", given, folder / f"{len(workers)}.log")
            workers.append(stack.enter_context(worker))
            worker.ask("train", steps=1)  # allocates and compiles
        request = {"do": "train", "steps": options.steps}
        answers = take_turns([(worker, request) for worker in workers], [{}] * options.rounds).answers
        infos = [{**worker.ask("info"), "name": worker.name} for worker in workers]
    found = list(zip(infos, answers, strict=True))
    others = found[-1:] * (len(found) - 1) if options.base is None else found[len(options.precisions) :]
    goal = GOAL if options.base is None else None
    for first, second in zip(found, others, strict=False):
        names = f"{first[0]['name']} against {second[0]['name']}"
        title = f"training, {options.shape} shape, {shape['layers']} layers: {names}"
        print(markdown(compared(title, goal, [first, second], unit="ms a token")))
    for info, rounds in found:
        each = sorted(value for values in rounds for value in values)
        print(f"{info['name']}: {1000 / each[len(each) // 2]:,.0f} tokens/s (median step)", flush=True)


if __name__ == "__main__":
    main()
