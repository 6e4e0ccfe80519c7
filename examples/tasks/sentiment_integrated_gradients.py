"""Show which characters a classification rests on, as bert4keras's task_sentiment_integrated_gradients.py does.

    python examples/tasks/sentiment_integrated_gradients.py --task sentiment --text 这是一本很好看的书 --html why.html

--task: a folder that hanmo.tasks.fit wrote for kind "classify".
"""

import argparse
from pathlib import Path

from rich.console import Console

from hanmo.tasks.explain import explain
from hanmo.tasks.pipeline import open_task


def main(arguments: list[str] | None = None) -> None:
    """Explain each text in the terminal, and the last one as a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--by", default="sum", choices=["sum", "length", "largest"])
    parser.add_argument("--html", type=Path)
    given = parser.parse_args(arguments)

    task = open_task(given.task)
    for text in given.text:
        explanation = explain(task, text, by=given.by)
        Console(soft_wrap=True).print(explanation)
        print(*(f"{character} {score:+.4f}" for character, score in explanation.characters), sep=", ")
    if given.html:
        given.html.write_text(explanation.to_html(), "utf-8")


if __name__ == "__main__":
    main()
