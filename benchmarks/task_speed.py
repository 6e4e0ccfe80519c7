"""Tag texts and train a classifier, here and by transformers' pipeline and Trainer: texts and tokens a second.

    python benchmarks/task_speed.py                      both parts, two rounds: about 10 minutes on 2 idle cores
    python benchmarks/task_speed.py --part predict --texts 512 --rounds 3

A BERT of 12 layers x 768 with random weights, which the peer loads as Hanmo exports it. Predicting: texts of 20 to 400
characters; the peer takes the best of its batch sizes, which are tried once on every fourth text. Training: AdamW,
float32, no dropout, 16 texts of 126 characters a step. Each turn is a fresh process that first warms up; sides take
turns. Prints a table, and how far logits are from torch's; what that costs in F1 is in task_real.py.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"layers": 12, "hidden_size": 768, "vocab_size": 21128, "longest": 400, "length": 126}
TINY = {"layers": 2, "hidden_size": 64, "vocab_size": 200, "longest": 60, "length": 14}
BATCHES = (1, 2, 4, 8, 16, 32)
LABELS = ("LOC", "ORG", "PER")
PREDICT = ("transformers", "float32", "bfloat16", "int8")
TRAIN = ("transformers", "torch")


def main() -> None:
    """Run the sides by turns, each in a process of its own, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", type=Path, help="folder of the peers' environments; none: this one's packages")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a turn of training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=128, help="texts to tag")
    parser.add_argument("--part", choices=("predict", "train"), help="one part alone")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--side", choices={*PREDICT, *TRAIN}, help=argparse.SUPPRESS)
    parser.add_argument("--peer-batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        print(json.dumps(_measure(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given.folder = Path(folder)
        _prepare(given.folder, TINY if given.tiny else SIZES)
        if given.part != "train":
            print(_report(_turns(given, "predict", PREDICT), "texts/s"))
        if given.part != "predict":
            print(_report(_turns(given, "train", TRAIN), "tokens/s"))


def _turns(given: argparse.Namespace, part: str, sides: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(given.rounds):
        for side in sides[:: 1 if number % 2 == 0 else -1]:
            python = _peer(given.envs) if side == "transformers" else sys.executable
            command = [python, __file__, "--part", part, "--side", side, "--folder", str(given.folder)]
            command += ["--steps", str(given.steps), "--threads", str(given.threads), *["--tiny"] * given.tiny]
            command += ["--texts", str(given.texts)]
            if side == "transformers" and found[side]:
                command += ["--peer-batch", str(found[side][0].get("batch", 1))]
            variables = os.environ | {"XDG_CACHE_HOME": str(given.folder / "cache")}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=variables)
            if done.returncode:
                raise SystemExit(f"{side} could not {part}; its message is above")
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(part, side, found[side][-1], file=sys.stderr, flush=True)
    return found


def _report(found: dict[str, list[dict[str, Any]]], unit: str) -> str:
    peer = [turn["rate"] for turn in found["transformers"]]
    rows = [f"| | {unit} | times transformers' | of | logits off by |", "|---|---:|---:|---|---:|"]
    for side, turns in found.items():
        rates = [turn["rate"] for turn in turns]
        ratios = [ours / theirs for ours, theirs in zip(rates, peer, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        off = f"{turns[0]['off']:.1e}" if "off" in turns[0] else ""
        rows.append(f"| {side} | {statistics.median(rates):,.1f} | {spread} | {turns[0].get('how', '')} | {off} |")
    return "\n".join(rows)


def _peer(folder: Path | None) -> str:
    if folder is None:
        return sys.executable
    from peers.environments import python_of

    return str(python_of("transformers", folder))


def _texts(sizes: dict[str, int], *, shortest: int, longest: int, count: int) -> list[str]:
    draw = np.random.default_rng(0)
    characters = _characters(sizes)
    return ["".join(draw.choice(characters, draw.integers(shortest, longest + 1))) for _ in range(count)]


def _characters(sizes: dict[str, int]) -> list[str]:
    return [chr(0x4E00 + number) for number in range(sizes["vocab_size"] - 5)]


def _prepare(folder: Path, sizes: dict[str, int]) -> None:
    """Write the encoder, a tagger on it, and both kinds of task as transformers loads them."""
    from hanmo.checkpoint.save import save
    from hanmo.families import FAMILIES
    from hanmo.loading import load
    from hanmo.model import Model
    from hanmo.tasks import TaskConfig
    from hanmo.tasks.export import export
    from hanmo.tasks.network import build, save_network
    from hanmo.tasks.pipeline import open_task
    from hanmo.tasks.table import make_task

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_characters(sizes)]) + "\n")
    names = FAMILIES["bert"].huggingface
    config = names.config({
        "vocab_size": sizes["vocab_size"], "hidden_size": sizes["hidden_size"],
        "num_hidden_layers": sizes["layers"], "num_attention_heads": sizes["hidden_size"] // 64,
        "intermediate_size": 4 * sizes["hidden_size"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    })  # fmt: skip
    save(Model(config).initialize(0), folder / "bert", tokenizer=[vocabulary])
    base = load(folder / "bert")
    for kind, form, head in (("tag", "BIO", "softmax"), ("classify", "single", "linear")):
        settled = TaskConfig(kind=kind, form=form, labels=LABELS, head=head, max_length=512)
        task = make_task(settled, base.tokenizer)
        save_network(build(base.model, task), folder / kind, settled, {vocabulary.name: vocabulary})
        export(open_task(folder / kind), folder / f"{kind}-hf")


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(given.threads)
    sizes = TINY if given.tiny else SIZES
    if given.part == "predict":
        texts = _texts(sizes, shortest=20, longest=sizes["longest"], count=given.texts)
        return (_tag_theirs if given.side == "transformers" else _tag_ours)(given, texts)
    rows = _texts(sizes, shortest=sizes["length"], longest=sizes["length"], count=16 * (given.steps + 2))
    ends: list[float] = []
    train = _train_theirs if given.side == "transformers" else _train_ours
    train(given, rows, lambda: ends.append(time.perf_counter()))
    each = statistics.median(late - early for early, late in itertools.pairwise(ends[1:]))
    return {"rate": 16 * (sizes["length"] + 2) / each}


def _rate(run: Callable[[list[str]], Any], texts: list[str]) -> float:
    run(texts[:8])
    start = time.perf_counter()
    run(texts)
    return len(texts) / (time.perf_counter() - start)


def _tag_ours(given: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    from hanmo.tasks.pipeline import open_task

    pipeline = open_task(given.folder / "tag")
    exact = _logits(pipeline, texts[:8])
    pipeline.use_openvino(weights=given.side, threads=given.threads)
    off = max(float(abs(one - two).max()) for one, two in zip(exact, _logits(pipeline, texts[:8]), strict=True))
    return {"rate": _rate(pipeline.predict, texts), "how": "texts of like length", "off": off}


def _logits(pipeline: Any, texts: list[str]) -> list[Any]:
    """Compute the logits of each text alone."""
    import torch

    found = []
    for text in texts:
        ids = torch.tensor([pipeline.task.tokenizer.encode(text).ids])
        batch = {"ids": ids, "segments": torch.zeros_like(ids), "mask": torch.ones_like(ids, dtype=torch.bool)}
        with torch.inference_mode():
            found.append(pipeline.network(batch).scores.numpy())
    return found


def _tag_theirs(given: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    from transformers import pipeline

    run = pipeline("token-classification", str(given.folder / "tag-hf"), device="cpu")

    def rate(size: int, some: list[str]) -> float:
        return _rate(lambda part: list(run(part, batch_size=size)), some)

    best = given.peer_batch or max(BATCHES, key=lambda size: rate(size, texts[::4]))
    how = f"batches of {best}, the best of {', '.join(map(str, BATCHES))}"
    return {"rate": rate(best, texts), "batch": best, "how": how}


def _train_ours(given: argparse.Namespace, texts: list[str], tick: Callable[[], None]) -> None:
    from hanmo.tasks import TaskConfig
    from hanmo.tasks.config import TaskArgs
    from hanmo.tasks.finetune import fit

    def timed(loss: Any, network: Any) -> Any:
        def ticking(network: Any, batch: Any) -> Any:
            tick()  # a step begins where the one before ends
            return loss(network, batch)

        return ticking

    rows = [{"text": text, "label": LABELS[number % 3]} for number, text in enumerate(texts)]
    steps = given.steps + 2
    args = TaskArgs(batch=16, steps=steps, lr=2e-5, evaluate_every=steps, save_every=steps)
    config = TaskConfig(kind="classify", max_length=512)
    out = given.folder / f"run-{os.getpid()}"
    fit(given.folder / "bert", train=rows, dev=rows[:3], out=out, config=config, args=args, wrap=[timed])


def _train_theirs(given: argparse.Namespace, texts: list[str], tick: Callable[[], None]) -> None:
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Ticks(TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            tick()

    tokenizer = AutoTokenizer.from_pretrained(given.folder / "classify-hf")
    rows = [{**tokenizer(text), "labels": number % 3} for number, text in enumerate(texts)]
    settings = TrainingArguments(
        output_dir=str(given.folder / f"run-{os.getpid()}"), per_device_train_batch_size=16,
        max_steps=given.steps + 2, learning_rate=2e-5, save_strategy="no", report_to=[], logging_strategy="no",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(given.folder / "classify-hf")
    Trainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer, callbacks=[Ticks()]).train()


if __name__ == "__main__":
    main()
