"""Train with float32 weights, bfloat16 weights rounded by chance, and plain bfloat16 weights, beside each other.

    python benchmarks/rounding_curves.py DATA OUT [--steps 400] [--hidden-size 128]

DATA is a folder that examples/small_model/prepare.py made. The three runs see the same batches, from the same weights,
by gpt2-ml's AdaFactor with the update in backward; all compute as their weights are. OUT gets curves.png and
result.json: the mean loss of the last tenth of the steps, and bits per character on held-out documents.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.tokenizers import Lossless
from hanmo.training import Settings, fit
from hanmo.training.data.pack import TokenEncoder
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.optim import adafactor_update
from hanmo.training.score import evaluation, held_out

KINDS = ("float32", "bfloat16, rounded by chance", "bfloat16, plain")


def main() -> None:
    """Train three times, draw, and say how far each ends from float32."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args()
    found = {kind: _train(given, kind) for kind in KINDS}
    tail = max(1, given.steps // 10)
    result = {
        kind: {"loss": statistics.fmean(run["losses"][-tail:]), "bits_per_character": run["bits"]}
        for kind, run in found.items()
    }
    for record in result.values():
        record["loss_to_float32"] = record["loss"] / result["float32"]["loss"]
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    _draw(given.out / "curves.png", {kind: run["losses"] for kind, run in found.items()})
    print(json.dumps(result, indent=1))


def _train(given: argparse.Namespace, kind: str) -> dict[str, Any]:
    encoder = TokenEncoder(Lossless(given.data / "vocab.txt"))
    data = PackedData(
        PackedFile(given.data / "train", vocabulary_sha256=encoder.sha256), window=given.window, rows=given.rows
    )
    config = gpt2_ml_config(
        vocab_size=encoder.vocab_size,
        num_layers=given.num_layers,
        hidden_size=given.hidden_size,
        positions=given.window,
    )
    model = Model(config).initialize(0)
    if kind != "float32":
        model.to(torch.bfloat16)
    by_chance = adafactor_update.round_stochastically
    if kind == KINDS[2]:
        adafactor_update.round_stochastically = lambda target, values, *, key: target.copy_(values)
    losses: list[float] = []
    settings = Settings(
        steps=given.steps, optimizer="adafactor-gpt2-ml", lr=given.lr, warmup=given.steps // 20, schedule="linear",
        clip=None, in_backward=True, log_every=1,
    )  # fmt: skip
    try:
        fit(
            model, data, out=given.out / kind.replace(", ", "-").replace(" ", "-"), settings=settings,
            watch=lambda record: losses.append(record["loss"]) if "loss" in record else None,
        )  # fmt: skip
    finally:
        adafactor_update.round_stochastically = by_chance
    files = held_out(given.data, vocabulary_sha256=encoder.sha256)
    measure = evaluation(files, distinct_unknown=0, window=given.window, unknown=encoder.unknown, documents=3)
    return {"losses": losses, "bits": measure(model.float())["bits_per_character"]}


def _draw(path: Path, losses: dict[str, list[float]]) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (kind, values), color in zip(losses.items(), ("tab:blue", "tab:orange", "tab:red"), strict=True):
        smooth = [statistics.fmean(values[max(0, at - 9) : at + 1]) for at in range(len(values))]
        axes.plot(smooth, label=f"{kind}: {statistics.fmean(values[-len(values) // 10 :]):.3f}", color=color)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, nats a token (mean of 10 steps)")
    axes.legend(title="weights: loss at the end")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
