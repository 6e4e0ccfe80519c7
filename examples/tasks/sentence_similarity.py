"""Train vectors of sentences on LCQMC by CoSENT, and search with them.

    python examples/tasks/sentence_similarity.py --model simbert --data lcqmc --query 怎么开初婚未育证明

In place of SimBERT's retrieval_test.py and CoSENT's cosent.py. bert4keras's task_sentence_similarity_lcqmc.py
classifies the same pairs: kind "classify" with the keys "a", "b" and "label".
--data: a folder with lcqmc.train.data, lcqmc.valid.data and lcqmc.test.data: two sentences and 0 or 1, tabs between.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.readers import read_data


def main(arguments: list[str] | None = None) -> None:
    """Train, score the test file, and print the sentences of it that are most similar to the query."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--query", required=True)
    parser.add_argument("--out", type=Path, default=Path("similarity"))
    parser.add_argument("--pooler", default="linear", help="activation of the pooler; SimBERT: linear, BERT: tanh")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    given = parser.parse_args(arguments)

    train, dev, test = (read_data(given.data / f"lcqmc.{part}.data") for part in ("train", "valid", "test"))
    config = TaskConfig(kind="embed", form="cosent", max_length=64, options={"pooler": given.pooler})
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args)

    task = hanmo.load(given.out)
    print(task.evaluate(test))
    texts = list(dict.fromkeys(text for row in test for text in (row.data["a"], row.data["b"])))
    for place, score in task.search(given.query, task.encode(texts), k=5)[0]:
        print(f"{score:.4f} {texts[place]}")


if __name__ == "__main__":
    main()
