"""Continue the training of a released checkpoint with its optimizer, its moments and its kind of data.

    python examples/continue_pretraining.py gpt2/model.ckpt-100000 corpus/ more

A GPT2_ML checkpoint holds AdaFactor's moments. With them the first steps have the right size, so there is no warm-up,
which a new optimizer would need.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from hanmo.finetune import Run, finetune
from hanmo.training import TrainArgs


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    args = TrainArgs(
        steps=given.steps,
        sequence=given.sequence,
        batch=given.batch,
        optimizer="adafactor-gpt2-ml",
        schedule="linear",
        warmup=0,
        restore_slots=True,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(given.out, [given.corpus], resume=given.resume)
    finetune(given.model, run, args=args, device=device, console=Console(stderr=True))


if __name__ == "__main__":
    main()
