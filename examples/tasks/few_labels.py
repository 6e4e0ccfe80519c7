"""Classify short texts by PET: a template and a word for each label, with a few rows of each.

    python examples/tasks/few_labels.py --model bert --train train.jsonl --dev dev.jsonl \
        --template "{label}满意。{text}" --words 正面=很 负面=不

In place of bert4torch's example of PET on sentiment. Rows: {"text", "label"}.
"""

import argparse
import json
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit


def main(arguments: list[str] | None = None) -> None:
    """Train, and print the accuracy before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--template", default="{label}满意。{text}")
    parser.add_argument("--words", nargs="+", required=True, help="LABEL=WORD for each label")
    parser.add_argument("--out", type=Path, default=Path("few"))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-5)
    given = parser.parse_args(arguments)

    words = dict(word.split("=", 1) for word in given.words)
    config = TaskConfig(kind="few", options={"template": given.template, "words": words})
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    fit(given.model, train=given.train, dev=given.dev, config=config, out=given.out, args=args)

    records = map(json.loads, (given.out / "log.jsonl").read_text("utf-8").splitlines())
    first = next(record["evaluation"] for record in records if "evaluation" in record)
    print("before", first["accuracy"])
    print("after", hanmo.load(given.out).evaluate(given.dev)["accuracy"])


if __name__ == "__main__":
    main()
