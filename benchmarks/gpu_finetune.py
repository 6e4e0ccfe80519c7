"""Fine-tune all of a GPT2_ML of 1.39 B parameters on a GPU: peak memory, tokens/s and share of the bfloat16 peak.

    python benchmarks/gpu_finetune.py --out gpu_finetune.json
    python benchmarks/gpu_finetune.py --device cpu --tiny

Random weights and ids, sequence 1,024, AdaFactor by gpt2-ml's recipe, update in backward. The share of the peak counts
6 x parameters x tokens operations, without those of recomputation. Each case runs in a fresh process and prints a JSON
line; a step is the median of all but the first. `compiled` compiles each block by torch.compile.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.training.loss import next_token_loss
from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.optim.in_backward import UpdateInBackward
from hanmo.training.optim.schedule import parameter_groups

PEAK = 989e12  # bfloat16 operations a second of an H100 or H200 (NVIDIA's data sheet, without sparsity)
CASES: list[dict[str, Any]] = [
    {"dtype": "bfloat16", "rows": 1, "recompute": True, "compiled": False},
    {"dtype": "bfloat16", "rows": 8, "recompute": True, "compiled": False},
    {"dtype": "bfloat16", "rows": 8, "recompute": False, "compiled": True},
    {"dtype": "bfloat16", "rows": 16, "recompute": False, "compiled": True},
    {"dtype": "float32", "rows": 1, "recompute": True, "compiled": False},
    {"dtype": "float32", "rows": 8, "recompute": True, "compiled": False},
]
TINY = {"num_layers": 2, "hidden_size": 64, "vocab_size": 100, "sequence": 32, "steps": 2}


def main() -> None:
    """Measure case by case; a case that fails is recorded with its error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = {"num_layers": 48, "hidden_size": 1536, "vocab_size": 21128, "sequence": 1024, "steps": 6}
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see the script run; no figures to report")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("gpu_finetune.py needs a CUDA GPU, and torch finds none; --device cpu --tiny tries it without")
    if given.tiny:
        vars(given).update(TINY)
    if given.case is not None:
        print(json.dumps(given.case | measure(given, **given.case)))
        return
    found = []
    for case in CASES:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True)
        failed = {"error": done.stderr.strip().splitlines()[-1:]}
        found.append(json.loads(done.stdout) if done.returncode == 0 else case | failed)
        print(json.dumps(found[-1]), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def measure(given: argparse.Namespace, *, dtype: str, rows: int, recompute: bool, compiled: bool) -> dict[str, Any]:
    """Make the steps of one case with a fresh model and optimizer."""
    cuda = given.device.startswith("cuda")
    wait: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None
    torch.set_float32_matmul_precision("high")
    model = make_model(given, getattr(torch, dtype))
    model.main.recompute = recompute
    if compiled:
        for block in model.main.blocks:
            block.compile(dynamic=False)
    groups = parameter_groups(model.named_parameters(), lr=1e-4, weight_decay=0.01)
    updates = UpdateInBackward(AdaFactor(groups, "gpt2-ml", compile=cuda))
    half = torch.autocast(torch.device(given.device).type, torch.bfloat16) if dtype == "float32" else nullcontext()
    times, losses = [], []
    for _ in range(given.steps):
        ids = torch.randint(1, given.vocab_size, (rows, given.sequence + 1), device=given.device)
        wait()
        began = time.perf_counter()
        with half:
            loss = next_token_loss(model, ids)
        torch.autograd.backward(loss)
        updates.finish()
        wait()
        times.append(time.perf_counter() - began)
        losses.append(float(loss.detach()))
    step = statistics.median(times[1:])
    parameters = sum(each.numel() for each in model.parameters())
    rate = rows * given.sequence / step
    return {
        "device": torch.cuda.get_device_name(given.device) if cuda else "cpu, figures mean nothing",
        "torch": torch.__version__,
        "parameters": parameters,
        "peak_GiB": torch.cuda.max_memory_allocated(given.device) / 2**30 if cuda else None,
        "first_step_seconds": times[0],
        "seconds_per_step": step,
        "tokens_per_second": rate,
        "share_of_peak": 6 * parameters * rate / PEAK,
        "losses": losses,
    }


def make_model(given: argparse.Namespace, dtype: torch.dtype) -> Model:
    """Make the model in `dtype` from the start, so that no float32 copy counts in the peak."""
    config = gpt2_ml_config(
        vocab_size=given.vocab_size,
        num_layers=given.num_layers,
        hidden_size=given.hidden_size,
        positions=given.sequence,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(given.device):
            return Model(config).initialize(0).train()
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    main()
