"""Rows of rules with spans, relations and events, for tasks with pointers."""

from typing import Any

import numpy as np
from toy_tasks import texts

NAMES = ("金", "玉", "云腾")


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


def relation_rows(count: int, *, seed: int = 0, strings: bool = False) -> list[dict[str, Any]]:
    """Make rows half of which have A生B or A结B, a relation "parent" or "spouse", and all a name in no relation.

    strings: give relations as triples of strings, none of which the text has twice.
    """
    draw, rows = np.random.default_rng(seed), []
    for number, text in enumerate(texts(count, seed=seed, longest=8)):
        text = plain(text, "金玉云腾生结")
        subject, other, alone = draw.permutation(NAMES).tolist()
        made = (alone if strings else str(draw.choice(NAMES))) + text[:2]
        row: dict[str, Any] = {"spans": [], "relations": [], "triples": []}
        if number % 2:
            verb, label = (("生", "parent"), ("结", "spouse"))[int(draw.integers(2))]
            for name, start in ((subject, len(made)), (other, len(made) + len(subject) + 1)):
                row["spans"].append({"start": start, "stop": start + len(name), "label": "name"})
            row["relations"].append({"subject": 0, "object": 1, "label": label})
            row["triples"].append([subject, label, other])
            made += subject + verb + other
        keys = ["triples"] if strings else ["spans", "relations"]
        rows.append({"text": made + text[2:], **{key: row[key] for key in keys}})
    return rows


def event_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows half of which have A生B, an event "birth" of trigger 生 with a parent and a child, and names alone."""
    rows = []
    for row in relation_rows(count, seed=seed):
        text, spans, events = row["text"].replace("结", "生"), row["spans"], []
        if spans:
            parent, child = ({**span, "label": role} for span, role in zip(spans, ("parent", "child"), strict=True))
            trigger = {"start": parent["stop"], "stop": child["start"]}
            events.append({"label": "birth", "trigger": trigger, "arguments": [parent, child]})
        rows.append({"text": text, "events": events})
    return rows
