"""Classify long texts of IFLYTEK with adversarial training (FGM), as task_iflytek_adversarial_training.py does.

    python examples/tasks/iflytek_adversarial_training.py --model bert --data iflytek

--data: a folder with train.json and dev.json of CLUE: {"sentence", "label"} on each line.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.adversarial import Fgm


def main(arguments: list[str] | None = None) -> None:
    """Train on moved token vectors, and score the dev file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("iflytek"))
    parser.add_argument("--epsilon", type=float, default=0.5)
    parser.add_argument("--epochs", type=float, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    given = parser.parse_args(arguments)

    train, dev = (given.data / f"{part}.json" for part in ("train", "dev"))
    config = TaskConfig(kind="classify", pooling="first", max_length=128)
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    trick = Fgm(epsilon=given.epsilon)
    fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args, wrap=trick)
    print(hanmo.load(given.out).evaluate(dev))


if __name__ == "__main__":
    main()
