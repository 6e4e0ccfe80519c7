"""Find relations by GPLinker, as bert4keras's task_relation_extraction_gplinker.py does.

    python examples/tasks/relation_extraction_gplinker.py --model bert --data duie

--data: a folder with train_data.json and dev_data.json of Baidu's DuIE: {"text", "spo_list": [{"subject", "predicate",
"object"}]} on each line.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit


def main(arguments: list[str] | None = None) -> None:
    """Train, print the best scores on dev, and the triples of each text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("relations"))
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--average", type=float, default=0.999, help="momentum; 0 for few steps")
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--text", action="append", default=[], help="to find relations in afterwards; several times")
    given = parser.parse_args(arguments)

    config = TaskConfig(kind="relate", head="gplinker", max_length=given.length)
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr, average=given.average, average_every=1)
    train, dev = given.data / "train_data.json", given.data / "dev_data.json"
    fitted = fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args)
    print(*fitted.notes, fitted.score.scores, sep="\n")

    for result in hanmo.load(given.out).predict(given.text):
        names = [span["text"] for span in result["spans"]]
        print(*([names[each["subject"]], each["label"], names[each["object"]]] for each in result["relations"]))


if __name__ == "__main__":
    main()
