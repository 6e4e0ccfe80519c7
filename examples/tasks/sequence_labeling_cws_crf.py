"""Divide texts into words by a BERT with a CRF, as bert4keras's task_sequence_labeling_cws_crf.py does.

    python examples/tasks/sequence_labeling_cws_crf.py --model bert --data icwb2-data/training/pku_training.utf8

--data: a text on each line, with spaces between its words. A tenth of the lines is held out.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskConfig, fit
from hanmo.training import TrainArgs


def main(arguments: list[str] | None = None) -> None:
    """Train, and print the words of each text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("cws"))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--text", action="append", default=[], help="to be divided afterwards; several times")
    given = parser.parse_args(arguments)

    config = TaskConfig(kind="tag", form="words", head="crf", options={"transitions_rate": 1})
    args = TrainArgs(batch=given.batch, epochs=given.epochs, lr=given.lr, held_out=0.1)
    fitted = fit(given.model, train=given.data, format="words", config=config, out=given.out, args=args)

    print(fitted.score.scores)
    for result in hanmo.load(given.out).predict(given.text):
        print(*result["words"])


if __name__ == "__main__":
    main()
