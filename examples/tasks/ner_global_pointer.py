"""Find entities, nested ones too, by GlobalPointer (kexue.fm/archives/8373).

    python examples/tasks/ner_global_pointer.py --model bert --data china-people-daily-ner-corpus

--data: a folder with example.train, example.dev and example.test, which have a character and its tag (O, B-LOC,
I-LOC …) on each line, or rows with "spans", which may be nested, or CLUENER's.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit


def main(arguments: list[str] | None = None) -> None:
    """Train, score the test file, and print the entities of each text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("ner"))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--text", action="append", default=[], help="to find entities in afterwards; several times")
    given = parser.parse_args(arguments)

    train, dev, test = (given.data / f"example.{part}" for part in ("train", "dev", "test"))
    config = TaskConfig(kind="spans", head="global_pointer")  # or "efficient_global_pointer", of fewer parameters
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args)

    task = hanmo.load(given.out)
    print(task.evaluate(test))
    for result in task.predict(given.text):
        print(*(f"{span['start']}:{span['stop']} {span['label']} {span['text']}" for span in result["spans"]))


if __name__ == "__main__":
    main()
