"""Classify the long texts of IFLYTEK into 119 classes, in one process or several.

    python examples/tasks/iflytek.py --model bert --data iflytek
    torchrun --nproc-per-node 2 examples/tasks/iflytek.py --model bert --data iflytek

In place of bert4keras's task_iflytek_multigpu.py. A text that is longer than --max-length is read in windows.
--data: a folder of CLUE with train.json, dev.json and test.json: {"sentence", "label"} on each line, and "id" in
test.json. Predictions for the last go to OUT/predictions.json, as CLUE takes them.
"""

import argparse
import json
from pathlib import Path

import torch

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.training import distributed


def main(arguments: list[str] | None = None) -> None:
    """Train, and write predictions for the test file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("iflytek"))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--max-length", type=int, default=128)
    given = parser.parse_args(arguments)

    config = TaskConfig(kind="classify", pooling="first", max_length=given.max_length)
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    train, dev = given.data / "train.json", given.data / "dev.json"
    with distributed.started("cuda" if torch.cuda.is_available() else "cpu") as device:
        fitted = fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args, device=device)
        if not distributed.is_main():
            return
    print(fitted.score.scores)
    rows = [json.loads(line) for line in (given.data / "test.json").read_text("utf-8").splitlines()]
    results = hanmo.load(fitted.folder).predict([row["sentence"] for row in rows])
    found = [{"id": row["id"], "label": result["label"]} for row, result in zip(rows, results, strict=True)]
    (given.out / "predictions.json").write_text("".join(json.dumps(each) + "\n" for each in found), "utf-8")


if __name__ == "__main__":
    main()
