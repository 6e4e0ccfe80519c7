"""Train a reader on WebQA and SogouQA, by masks, by writing, or by the ends of the answer.

    python examples/tasks/reading_comprehension.py --model bert --data qa_datasets --by mlm

In place of bert4keras's task_reading_comprehension_by_mlm.py and task_reading_comprehension_by_seq2seq.py.
--data: a folder with WebQA.json and SogouQA.json, lists of {"id", "question", "passages": [{"passage", "answer"}, …]}.
A third of SogouQA is held out; its answers are printed.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit

KINDS = {"mlm": "read_mlm", "seq2seq": "read_seq2seq", "span": "read"}


def row_of(question: dict[str, Any]) -> dict[str, Any]:
    """Join the passages of a question; the first answer that occurs in them is the right one."""
    text = "\n".join(each["passage"] for each in question["passages"])
    answers = [each["answer"] for each in question["passages"] if each["answer"] and each["answer"] in text]
    return {"id": question["id"], "text": text, "question": question["question"], "answers": answers}


def main(arguments: list[str] | None = None) -> None:
    """Train, and print the scores and the answers of the questions that were held out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--by", choices=KINDS, default="mlm")
    parser.add_argument("--out", type=Path, default=Path("reader"))
    parser.add_argument("--max-answer", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-5)
    given = parser.parse_args(arguments)

    web, sogou = (
        [row_of(each) for each in json.loads((given.data / f"{name}.json").read_text("utf-8"))]
        for name in ("WebQA", "SogouQA")
    )
    random.Random(0).shuffle(sogou)
    dev, train = sogou[::3], [row for number, row in enumerate(sogou) if number % 3]
    config = TaskConfig(kind=KINDS[given.by], options={"max_answer": given.max_answer})
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    fit(given.model, train=train * 2 + web, dev=dev, config=config, out=given.out, args=args)

    task = hanmo.load(given.out)
    print(task.evaluate(dev))
    for row, result in zip(dev, task.predict(dev), strict=True):
        print(row["id"], result["answer"], sep="\t")


if __name__ == "__main__":
    main()
