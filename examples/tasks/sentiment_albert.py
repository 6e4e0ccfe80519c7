"""Classify sentiment by an ALBERT, as bert4keras's task_sentiment_albert.py does.

    python examples/tasks/sentiment_albert.py --model albert_small_zh_google --data sentiment --text 房间很干净

--data: a folder with sentiment.train.data, sentiment.valid.data and sentiment.test.data: a text, a tab, and 0 or 1.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit


def main(arguments: list[str] | None = None) -> None:
    """Train, score the test file, and print the label of each text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("sentiment"))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--text", action="append", default=[], help="to classify afterwards; several times")
    given = parser.parse_args(arguments)

    train, dev, test = (given.data / f"sentiment.{part}.data" for part in ("train", "valid", "test"))
    config = TaskConfig(kind="classify", max_length=128)
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args)

    task = hanmo.load(given.out)
    print(task.evaluate(test))
    for text, result in zip(given.text, task.predict(given.text), strict=True):
        print(f"{result['label']} {result['probability']:.3f} {text}")


if __name__ == "__main__":
    main()
