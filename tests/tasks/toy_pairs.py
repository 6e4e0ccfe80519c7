"""Rows of pairs of texts, and of questions, that follow a rule."""

from typing import Any

import numpy as np
from toy_tasks import CHARACTERS, texts


def alike_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make pairs of texts that share a run of one character: at the start of the first, at the end of the second."""
    rows = []
    for number, (a, b) in enumerate(zip(texts(count, seed=seed), texts(count, seed=seed + 1000), strict=True)):
        key = CHARACTERS[number % 50] * 3
        rows.append({"a": key + a[:3], "b": b[:3] + key})
    return rows


def similar_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make pairs of `alike_rows` with score 1, and pairs of texts of different rows with score 0."""
    rows = alike_rows(count, seed=seed)
    shifted = [row if number % 2 else rows[number - 1] for number, row in enumerate(rows)]
    return [
        {"a": row["a"], "b": other["b"], "score": float(row is other)} for row, other in zip(rows, shifted, strict=True)
    ]


def question_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make questions for the character after a mark, a or b; every third passage lacks the mark that is asked for."""
    draw, rows = np.random.default_rng(seed), []
    for number, text in enumerate(texts(count, seed=seed, longest=5)):
        asked, other = "ab" if number % 2 else "ba"
        answer, wrong = draw.choice(list(CHARACTERS[:12]), 2)
        parts = [asked + answer, other + wrong] if number % 3 else [other + wrong]
        passage = text[:2] + "".join(parts[:: 1 if number % 4 else -1]) + text[2:]
        start = passage.index(asked) + 1 if number % 3 else 0
        answers = [{"start": start, "stop": start + 1, "text": str(answer)}] if number % 3 else []
        rows.append({"text": passage, "question": asked * 2, "answers": answers})
    return rows
