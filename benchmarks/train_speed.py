"""Measure training steps: seconds, tokens a second, memory and the share of the chip's peak, on random ids.

    python benchmarks/train_speed.py --num-layers 8 --hidden-size 448 --positions 1024 --rows 64 --compile

FLOPs are counted as 6 per parameter and token plus 6 x layers x hidden size x positions
for causal attention, no recomputation.
"""

import argparse
import json
import time

import torch

from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.training import Settings
from hanmo.training.loss import next_token_loss
from hanmo.training.step import make_optimizer


def main() -> None:
    """Read the arguments, time the steps, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (
        ("num_layers", 8),
        ("hidden_size", 448),
        ("positions", 1024),
        ("rows", 64),
        ("vocab_size", 8000),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak", type=float, default=989.4, help="TFLOP/s of the chip in bfloat16, dense")
    given = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = gpt2_ml_config(
        vocab_size=given.vocab_size,
        num_layers=given.num_layers,
        hidden_size=given.hidden_size,
        positions=given.positions,
        dropout=given.dropout,
    )
    model = Model(config).initialize(0).to(device)
    optimizer = make_optimizer(model, Settings(steps=1, optimizer=given.optimizer))

    def compute(ids: torch.Tensor) -> torch.Tensor:
        return next_token_loss(model, ids)

    loss_of = torch.compile(compute, dynamic=False) if given.compile else compute
    ids = torch.randint(1, given.vocab_size, (given.rows, given.positions + 1), device=device)
    times = []
    for _ in range(given.steps):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(ids)
        torch.autograd.backward(loss)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    steady = sorted(times[given.steps // 2 :])[(given.steps - given.steps // 2) // 2]
    tokens = given.rows * given.positions
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = (6 * parameters + 6 * given.num_layers * given.hidden_size * given.positions) * tokens
    found = {
        "parameters": parameters, "tokens": tokens, "first_step_s": times[0], "step_s": steady,
        "tokens_per_second": tokens / steady, "tflops": flops / steady / 1e12, "norm": norm,
    }  # fmt: skip
    if device == "cuda":
        found["share_of_peak"] = flops / steady / 1e12 / given.peak
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["device"] = torch.cuda.get_device_name()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
