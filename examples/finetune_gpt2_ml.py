"""Fine-tune all weights of a GPT2_ML checkpoint on one's own text, in the memory of an 8 GB card.

    python examples/finetune_gpt2_ml.py gpt2/model.ckpt-100000 novel.txt tuned

The same as `hanmo finetune`, written out: load, pack, train with update in backward, write. The vocabulary is beside
the checkpoint.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

import hanmo
from hanmo.tokenizers.load import tokenizer_files
from hanmo.training import Settings, fit
from hanmo.training.objective import make_task


def main() -> None:
    """Read the arguments, train, and write with what was trained."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--prompt", default="今天天气不错")
    given = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = hanmo.load(given.model, dtype=torch.bfloat16, device=device)  # AdaFactor rounds its weights by chance
    every = max(1, given.steps // 10)
    settings = Settings(
        sequence=given.sequence,
        steps=given.steps,
        optimizer="adafactor-gpt2-ml",
        lr=given.lr,
        weight_decay=0.01,
        schedule="linear",
        warmup=every,
        clip=None,  # AdaFactor clips each tensor's update by its own rule
        in_backward=True,
        recompute=True,
        evaluate_every=every,
        save_every=every,
    )
    task = make_task(loaded.config, loaded.tokenizer, given.text, out=given.out / "data", args=settings)
    folder = loaded.path if loaded.path.is_dir() else loaded.path.parent
    outcome = fit(
        loaded.model,
        task.data,
        out=given.out,
        settings=settings,
        loss=task.loss,
        evaluate=task.evaluate,
        beside=tokenizer_files(folder),
        resume=True,
        console=Console(stderr=True),
    )
    print(hanmo.load(outcome.folder, device=device).write(given.prompt)[0])


if __name__ == "__main__":
    main()
