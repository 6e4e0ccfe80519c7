"""Plot the time per token against the number of tokens before it. Knows matplotlib."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import ConfigError, MissingExtra


def check_picture(path: Path) -> None:
    """Raise ConfigError for another format than .png and .svg, MissingExtra without matplotlib."""
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"the picture is {path.name!r}; expected a name that ends in .png or .svg")
    if find_spec("matplotlib") is None:
        raise MissingExtra("pictures are drawn by matplotlib, which is not installed; pip install 'hanmo[plots]'")


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot the result of `hanmo.bench.speed.measure` to a .png or .svg.

    A decoder is compared with a loop without a cache, which reads the whole text again for every token: the time of a
    prompt of that length on the same engine. An encoder-decoder's source is read once either way.
    Raises what `check_picture` raises.
    """
    check_picture(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    model, machine, rows = result["model"], result["machine"], result["lengths"]["rows"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    tokens = [row["tokens"] for row in rows]
    lines = [("token_seconds", "#1b6ca8", "Hanmo:\none step")]
    if not model["answers"]:
        lines.append(("first_token_seconds", "#b5482a", "without a cache:\nthe whole text\nagain, same engine"))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for name, color, words in lines:
        times = [row[name] * 1000 for row in rows]
        axes.plot(tokens, times, color=color, marker="o", markersize=5, linewidth=2, clip_on=False)
        first, last = (f"{_number(time)} ms" for time in (times[0], times[-1]))
        how: dict[str, Any] = {"textcoords": "offset points", "color": color}
        axes.annotate(first, (tokens[0], times[0]), xytext=(6, -14), fontsize=9, **how)
        axes.annotate(f"{last}\n{words}", (tokens[-1], times[-1]), xytext=(10, 0), va="center", fontsize=10, **how)
    bottom, top = axes.get_ylim()
    axes.set_ylim(0 if model["answers"] else bottom / 1.6, top * 1.3)
    axes.set_xlim(0, tokens[-1] * 1.02)
    axes.set_xticks(tokens, [f"{each:,}" for each in tokens])
    axes.yaxis.set_major_formatter(lambda value, place: _number(value))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens of the source" if model["answers"] else "tokens before the generated one")
    axes.set_ylabel("milliseconds per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    of = "source" if model["answers"] else "text"
    axes.set_title(f"Time per token, by length of the {of}", loc="left", pad=38, fontweight="bold")
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    what = f"{model['family']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['weights']}, batch 1"
    axes.text(
        0, 1.03, f"{what}\n{where}, {machine['date'][:10]}", transform=axes.transAxes, fontsize=9, color="#666666"
    )
    with atomic_path(path) as made:
        figure.savefig(made, format=path.suffix[1:], dpi=160)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
