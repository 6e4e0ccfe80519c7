"""Distill a trained classifier into one of 3 blocks, and compare it with the same blocks trained on labels alone.

    python examples/tasks/distillation.py --teacher iflytek --model bert --data iflytek-data

--teacher: a folder of a trained task, as iflytek_adversarial_training.py writes it.
--data: a folder with train.json and dev.json of CLUE: {"sentence", "label"} on each line.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, fit
from hanmo.tasks.compress import Distill, fewer_blocks
from hanmo.tasks.pipeline import open_task


def main(arguments: list[str] | None = None) -> None:
    """Train a student with the teacher and without, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("distilled"))
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5)
    given = parser.parse_args(arguments)

    train, dev = (given.data / f"{part}.json" for part in ("train", "dev"))
    teacher = open_task(given.teacher)
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    for name, wrap in (("labels", []), ("teacher", [Distill(teacher)])):
        student = fewer_blocks(hanmo.load(given.model), given.blocks)
        config = replace(teacher.task.config, score=None, temperature=1.0)
        fitted = fit(student, train=train, dev=dev, config=config, out=given.out / name, args=args, wrap=wrap)
        print(f"{name} {fitted.score.name} {fitted.score.value:.4f}")


if __name__ == "__main__":
    main()
