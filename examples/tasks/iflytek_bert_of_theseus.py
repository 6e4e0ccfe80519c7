"""Compress a classifier of IFLYTEK to 3 blocks, as bert4keras's task_iflytek_bert_of_theseus.py does.

    python examples/tasks/iflytek_bert_of_theseus.py --model bert --data iflytek

--data: a folder with train.json and dev.json of CLUE: {"sentence", "label"} on each line.
"""

import argparse
from pathlib import Path
from typing import Any

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.compress import Theseus, fewer_blocks


def main(arguments: list[str] | None = None) -> None:
    """Train all blocks, then few in their place, then these few together; print the three scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("theseus"))
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    given = parser.parse_args(arguments)

    train, dev = (given.data / f"{part}.json" for part in ("train", "dev"))
    config = TaskConfig(kind="classify", pooling="first", max_length=128)

    def run(model: Any, name: str, epochs: float, **options: Any) -> Any:
        args = TaskArgs(batch=given.batch, epochs=epochs, lr=given.lr)
        fitted = fit(model, train=train, dev=dev, config=config, out=given.out / name, args=args, **options)
        print(f"{name} {fitted.score.name} {fitted.score.value:.4f}")
        return hanmo.load(given.out / name)

    teacher = run(given.model, "predecessor", given.epochs)
    student = fewer_blocks(hanmo.load(given.model), given.blocks)
    replaced = run(student, "theseus", 2 * given.epochs, wrap=Theseus(teacher))
    run(replaced, "successor", given.epochs)


if __name__ == "__main__":
    main()
