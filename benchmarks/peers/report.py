"""Numbers of two sides to one row, and rows to Markdown. Knows statistics and text; knows no process."""

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["Row", "compared", "markdown", "single"]

Row = dict[str, Any]


def compared(
    title: str,
    goal: float | None,
    sides: Sequence[tuple[dict[str, Any], Sequence[Sequence[float]]]],
    *,
    unit: str,
    most: bool = False,
    **notes: Any,
) -> Row:
    """Make the row of two sides that took turns: their medians, and how often the second's is the first's.

    sides: what each says of itself, and its values, [round][value], of which less is better.
    goal: what the ratio must reach, or with most=True must not pass.   notes: said below the table.
    The ratio is taken in every round and is their median; the lowest and highest are given beside it.
    """
    rounds = [[statistics.median(values) for values in times] for _, times in sides]
    ratios = [second / first for first, second in zip(*rounds, strict=True)]
    lines = [
        {**info, "median": statistics.median(medians), "lowest": min(medians), "highest": max(medians)}
        for (info, _), medians in zip(sides, rounds, strict=True)
    ]
    return {"title": title, "unit": unit, "sides": lines, **_judged(ratios, goal, most), "notes": notes}


def single(
    title: str,
    goal: float | None,
    info: dict[str, Any],
    values: Sequence[float],
    ratios: Sequence[float],
    *,
    unit: str,
    most: bool = False,
    **notes: Any,
) -> Row:
    """Make the row of one side that is held against a bound: its values, and their ratios to it."""
    line = {**info, "median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {"title": title, "unit": unit, "sides": [line], **_judged(ratios, goal, most), "notes": notes}


def markdown(row: Row) -> str:
    """Write a row as a table of its sides, the ratio and the goal below it; the corner names the processor."""
    out = [
        f"### {row['title']}",
        "",
        f"| {row.get('processor', '')} | median, {row['unit']} | of the rounds | bytes of the weights |",
        "|---|---:|---:|---:|",
    ]
    for side in row["sides"]:
        span = f"{_number(side['lowest'])}–{_number(side['highest'])}"
        size = f"{side['bytes']:,}" if "bytes" in side else ""
        out.append(f"| {side['name']} | {_number(side['median'])} | {span} | {size} |")
    verdict = ""
    if row["goal"] is not None:
        bound = "at most" if row["most"] else "at least"
        verdict = f"; goal {bound} {row['goal']:g}: **{'met' if row['met'] else 'not met'}**"
    out += ["", f"Ratio {row['ratio']:.3g} ({row['ratio_lowest']:.3g}–{row['ratio_highest']:.3g}){verdict}."]
    out += (
        ["", *(f"- {name.replace('_', ' ')}: {_said(value)}" for name, value in row["notes"].items())]
        if row["notes"]
        else []
    )
    return "\n".join(out) + "\n"


def _judged(ratios: Sequence[float], goal: float | None, most: bool) -> Row:
    ratio = statistics.median(ratios)
    met = None if goal is None else (ratio <= goal if most else ratio >= goal)
    bounds = {"ratio_lowest": min(ratios), "ratio_highest": max(ratios)}
    return {"ratio": ratio, **bounds, "goal": goal, "most": most, "met": met}


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 20 else f"{value:.3g}"


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
