"""Rows of rules with spans, relations and events, for tasks with pointers."""

from typing import Any

import numpy as np
from toy_tasks import texts


def plain(text: str, characters: str, *, instead: str = "寒") -> str:
    """Replace some characters of a text."""
    return "".join(instead if character in characters else character for character in text)


def nested_rows(count: int, *, seed: int = 0, longest: int = 12) -> list[dict[str, Any]]:
    """Make rows with none to two of 日?月, each a span "pair" around a span "middle"; 龘 is not in the vocabulary."""
    draw, rows = np.random.default_rng(seed), []
    for number, text in enumerate(texts(count, seed=seed, longest=longest)):
        text = plain(plain(text, "日月"), "，。", instead="龘")
        places = sorted(draw.integers(0, len(text) + 1, number % 3).tolist())
        made, spans, before = "", [], 0
        for place in places:
            made += text[before:place]
            spans += [(len(made), len(made) + 3, "pair"), (len(made) + 1, len(made) + 2, "middle")]
            made, before = f"{made}日{draw.choice(['天', '地', '龘'])}月", place
        made += text[before:]
        rows.append({"text": made, "spans": [{"start": a, "stop": b, "label": label} for a, b, label in spans]})
    return rows
