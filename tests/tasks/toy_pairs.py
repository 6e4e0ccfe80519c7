"""Rows of pairs of texts, and of questions, that follow a rule."""

from typing import Any

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
