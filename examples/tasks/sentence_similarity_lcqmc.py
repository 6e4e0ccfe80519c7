"""Say of two sentences whether they mean the same, as bert4keras's task_sentence_similarity_lcqmc.py does.

    python examples/tasks/sentence_similarity_lcqmc.py --model bert --data lcqmc --pair 怎么开证明 证明怎么开

--data: a folder with lcqmc.train.data, lcqmc.valid.data and lcqmc.test.data: two sentences and 0 or 1, tabs between.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit


def main(arguments: list[str] | None = None) -> None:
    """Train, score the test file, and print the label of each pair."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("lcqmc"))
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--pair", nargs=2, action="append", default=[], help="to compare afterwards; several times")
    given = parser.parse_args(arguments)

    train, dev, test = (given.data / f"lcqmc.{part}.data" for part in ("train", "valid", "test"))
    config = TaskConfig(kind="classify", max_length=128)
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args)

    task = hanmo.load(given.out)
    print(task.evaluate(test))
    for (a, b), result in zip(given.pair, task.predict(given.pair), strict=True):
        print(f"{result['label']} {result['probability']:.3f} {a} {b}")


if __name__ == "__main__":
    main()
