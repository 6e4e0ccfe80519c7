"""Train a GPT-2 of 12 layers x 768 here and by transformers' Trainer with its Adafactor, by turns: speed and memory.

    python benchmarks/train_peer.py --envs FOLDER [--rounds 3] [--steps 4] [--tiny]

Random weights and the same random ids, sequence 512, batch 4, float32, two threads, no recomputation on either side,
no dropout; a fresh process for each turn, the first step of which is not counted. The peer gets its own environment.
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
from pathlib import Path
from typing import Any

SIZES = {
    "layers": 12,
    "hidden_size": 768,
    "num_heads": 12,
    "vocab_size": 21128,
    "positions": 1024,
    "sequence": 512,
    "batch": 4,
}
TINY = {"layers": 2, "hidden_size": 64, "num_heads": 2, "vocab_size": 500, "positions": 64, "sequence": 32, "batch": 2}


def main() -> None:
    """Run both sides by turns, each in a process of its own, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", type=Path, help="folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--side", choices=("hanmo", "transformers"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        print(json.dumps(_measure(given)))
        return
    pythons = {"hanmo": sys.executable, "transformers": _peer(given.envs)}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in pythons}
    for number in range(given.rounds):
        for side in list(pythons)[:: 1 if number % 2 == 0 else -1]:
            command = [pythons[side], __file__, "--side", side, "--steps", str(given.steps)]
            command += ["--threads", str(given.threads), *(["--tiny"] if given.tiny else [])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(side, found[side][-1], file=sys.stderr, flush=True)
    print(_report(found))


def _report(found: dict[str, list[dict[str, float]]]) -> str:
    pace = {side: statistics.median(turn["tokens_per_second"] for turn in turns) for side, turns in found.items()}
    peak = {side: statistics.median(turn["peak_bytes"] for turn in turns) for side, turns in found.items()}
    pairs = zip(found["hanmo"], found["transformers"], strict=True)
    ratios = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in pairs]
    rows = [f"| {side} | {pace[side]:,.0f} | {peak[side] / 2**30:.2f} GiB |" for side in found]
    return "\n".join([
        "| | tokens/s | peak memory above the imports |", "|---|---:|---:|", *rows,
        f"ratio of speeds {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    ])  # fmt: skip


def _peer(folder: Path | None) -> str:
    if folder is None:
        return sys.executable  # for a trial where transformers and accelerate are at hand
    from peers.environments import python_of

    return str(python_of("transformers", folder))


def _measure(given: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    sizes = TINY if given.tiny else SIZES
    ids = torch.randint(5, sizes["vocab_size"], (given.steps + 1, sizes["batch"], sizes["sequence"] + 1))
    ends: list[float] = []
    before = 0

    def begin() -> None:
        nonlocal before
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here

    (_ours if given.side == "hanmo" else _theirs)(ids, sizes, begin, lambda: ends.append(time.perf_counter()))
    each = statistics.median(late - early for early, late in itertools.pairwise(ends))
    return {"tokens_per_second": sizes["batch"] * sizes["sequence"] / each, "peak_bytes": _status("VmHWM") - before}


def _ours(ids: Any, sizes: dict[str, int], begin: Any, ended: Any) -> None:
    from dataclasses import replace

    from hanmo.families import FAMILIES
    from hanmo.model import Model
    from hanmo.training import Settings, fit

    names = FAMILIES["gpt2_openai"].huggingface or FAMILIES["gpt2"].huggingface
    config = names.config({
        "vocab_size": sizes["vocab_size"], "n_embd": sizes["hidden_size"],
        "n_layer": sizes["layers"], "n_head": sizes["num_heads"],
        "n_positions": sizes["positions"], "activation_function": "gelu_new",
    })  # fmt: skip
    config = replace(config, decoder=replace(config.decoder, dropout=0.0, attention_dropout=0.0))
    begin()
    model = Model(config).initialize(0)
    settings = Settings(
        steps=len(ids), optimizer="adafactor-gpt2-ml", lr=1e-4, clip=None, in_backward=True, log_every=1, warmup=0,
        schedule="constant",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        fit(model, [batch.numpy() for batch in ids], out=Path(out) / "run", settings=settings, watch=lambda _: ended())


def _theirs(ids: Any, sizes: dict[str, int], begin: Any, ended: Any) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Ticks(TrainerCallback):
        def on_step_end(self, *arguments: Any, **words: Any) -> None:
            ended()

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return ids.shape[0] * ids.shape[1]

        def __getitem__(self, place: int) -> dict[str, Any]:
            row = ids[place // ids.shape[1], place % ids.shape[1], :-1]
            return {"input_ids": row, "labels": row}

    begin()
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=sizes["vocab_size"], n_embd=sizes["hidden_size"],
            n_layer=sizes["layers"], n_head=sizes["num_heads"],
            n_positions=sizes["positions"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        settings = TrainingArguments(
            output_dir=out, per_device_train_batch_size=sizes["batch"], max_steps=len(ids), optim="adafactor",
            learning_rate=1e-4, lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no", report_to=[],
            logging_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=Rows(), callbacks=[Ticks()]).train()


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
