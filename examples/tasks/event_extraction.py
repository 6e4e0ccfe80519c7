"""Find events by GPLinker over roles, as bert4torch's event extraction does (kexue.fm/archives/8926).

    python examples/tasks/event_extraction.py --model bert --data duee

--data: a folder with duee_train.json and duee_dev.json of Baidu's DuEE 1.0.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import hanmo
from hanmo.tasks import TaskArgs, TaskConfig, fit


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read a file of DuEE as rows with events."""

    def span(part: dict[str, Any], name: str) -> dict[str, Any]:
        start, text = part[f"{name}_start_index"], part[name]
        return {"start": start, "stop": start + len(text), "text": text}

    def event(part: dict[str, Any]) -> dict[str, Any]:
        arguments = [span(each, "argument") | {"label": each["role"]} for each in part["arguments"]]
        return {"label": part["event_type"], "trigger": span(part, "trigger"), "arguments": arguments}

    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{"text": line["text"], "events": [event(part) for part in line["event_list"]]} for line in lines]


def main(arguments: list[str] | None = None) -> None:
    """Train, print the best scores on dev, and the events of each text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("events"))
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--text", action="append", default=[], help="to find events in afterwards; several times")
    given = parser.parse_args(arguments)

    train, dev = (rows_of(given.data / f"duee_{part}.json") for part in ("train", "dev"))
    args = TaskArgs(batch=given.batch, epochs=given.epochs, lr=given.lr)
    config = TaskConfig(kind="events", max_length=given.length)
    fitted = fit(given.model, train=train, dev=dev, config=config, out=given.out, args=args)
    print(*fitted.notes, fitted.score.scores, sep="\n")

    for result in hanmo.load(given.out).predict(given.text):
        for event in result["events"]:
            spans = {each["label"]: each["text"] for each in event["arguments"]}
            print(event["label"], event.get("trigger", {}).get("text", ""), spans)


if __name__ == "__main__":
    main()
