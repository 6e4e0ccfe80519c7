"""Learn sentiment from few labels and many texts, as task_sentiment_virtual_adversarial_training.py does.

    python examples/tasks/sentiment_virtual_adversarial_training.py --model bert --data sentiment

--data: a folder with sentiment.train.data, sentiment.valid.data and sentiment.test.data: a text, a tab, and 0 or 1.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.adversarial import Vat
from hanmo.tasks.readers import read_data


def main(arguments: list[str] | None = None) -> None:
    """Train on the labels of a share of the rows and on the texts of the others, and score the test file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("vat"))
    parser.add_argument("--labeled", type=float, default=0.01, help="share of the rows whose labels are used")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    given = parser.parse_args(arguments)

    train, dev, test = (read_data(given.data / f"sentiment.{part}.data") for part in ("train", "valid", "test"))
    count = int(len(train) * given.labeled)
    trick = Vat(train[count:], epsilon=given.epsilon)
    config = TaskConfig(kind="classify", pooling="first", max_length=128)
    args = TaskArgs(batch=given.batch, steps=given.steps, lr=given.lr, evaluate_every=30)
    fit(given.model, train=train[:count], dev=dev, config=config, out=given.out, args=args, wrap=trick)
    print(hanmo.load(given.out).evaluate(test))


if __name__ == "__main__":
    main()
