"""Draw the blocks of GPT2_ML, GPT-2 and BERT side by side, from the configurations that Hanmo reads.

python docs/draw_blocks.py [blocks.png]; needs matplotlib (pip install 'hanmo[plots]').
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from hanmo.config import StackConfig
from hanmo.families import FAMILIES

TITLES = {"gpt2_ml": "GPT2_ML", "gpt2": "GPT-2", "bert": "BERT"}
SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
LABELS = {"attention": "self-attention", "feed_forward": "feed-forward", "norm": "layer norm"}
COLOURS = {"attention": "#f5cf9f", "feed_forward": "#b9dcf2", "norm": "#e9eebb", "embeddings": "#efd3dc"}
INK, FRAME = "#333333", "#f6f6f6"
WIDTH, HEIGHT, GAP = 1.7, 0.5, 0.34


@dataclass(frozen=True)
class Steps:
    """What happens to the hidden states, first to last; "branch" opens a residual connection, "add" closes it."""

    before: list[str]
    block: list[str]
    after: list[str]

    @classmethod
    def of(cls, stack: StackConfig) -> "Steps":
        """List the steps of a stack."""
        block = []
        for sublayer in stack.order:
            block += ["branch", *["norm"] * sublayer.pre, sublayer.kind, "add", *["norm"] * sublayer.post]
        return cls(["embeddings", *["norm"] * stack.embedding_norm], block, ["norm"] * stack.final_norm)

    def __str__(self) -> str:
        return " ".join([*self.before, "[", *self.block, "]", *self.after])


def steps_of(family: str) -> Steps:
    """List the steps of a family's network, as its configuration says."""
    names = FAMILIES[family].tensorflow
    assert names is not None
    return Steps.of(names.config(SIZES).main)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow from one point to another."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0})


def draw_step(axes: Axes, x: float, y: float, step: str) -> float:
    """Draw a box, or the circle of an addition, on top of y; return where it ends."""
    if step == "add":
        axes.add_patch(Circle((x, y + 0.16), 0.16, facecolor="white", edgecolor=INK))
        axes.text(x, y + 0.15, "+", ha="center", va="center", color=INK, fontsize=12)
        return y + 0.32
    style = "round,pad=0,rounding_size=0.08"
    corner = (x - WIDTH / 2, y)
    axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle=style, facecolor=COLOURS[step], edgecolor=INK))
    axes.text(x, y + HEIGHT / 2 - 0.02, LABELS.get(step, step), ha="center", va="center", color=INK, fontsize=10)
    return y + HEIGHT


def draw_steps(axes: Axes, x: float, y: float, steps: list[str]) -> float:
    """Draw steps upwards from y, each behind an arrow, with residual connections at the left; return where they end."""
    branch = y
    for step in steps:
        if step == "branch":
            branch = y + 0.12
            continue
        top = draw_step(axes, x, y + GAP, step)
        arrow(axes, (x, y), (x, y + GAP))
        if step == "add":
            side, middle = x - WIDTH / 2 - 0.25, y + GAP + 0.16
            axes.plot([x, side, side], [branch, branch, middle], color=INK, linewidth=1)
            arrow(axes, (side, middle), (x - 0.16, middle))
        y = top
    return y


def draw_network(axes: Axes, x: float, title: str, steps: Steps) -> float:
    """Draw a network as a column around x: embeddings, the frame of a block, what follows it. Return its height."""
    y = draw_steps(axes, x, 0.0, steps.before)
    bottom = y + 0.2
    top = draw_steps(axes, x, bottom, steps.block) + 0.15
    axes.plot([x, x], [y, bottom], color=INK, linewidth=1)
    corner, style = (x - WIDTH / 2 - 0.42, bottom - 0.06), "round,pad=0,rounding_size=0.15"
    frame = FancyBboxPatch(
        corner, WIDTH + 0.84, top - bottom + 0.06, boxstyle=style, facecolor=FRAME, edgecolor="#999999", zorder=0
    )
    axes.add_patch(frame)
    axes.text(x + WIDTH / 2 + 0.37, bottom + 0.02, "× layers", ha="right", va="bottom", color="#777777", fontsize=8)
    axes.plot([x, x], [top - 0.15, top], color=INK, linewidth=1)
    end = draw_steps(axes, x, top, steps.after)
    arrow(axes, (x, end), (x, end + GAP))
    axes.text(x, -0.1, title, ha="center", va="top", color=INK, fontsize=12, fontweight="bold")
    return end + GAP


def draw(path: Path) -> None:
    """Draw the three networks to a file; its description holds the steps that are shown."""
    steps = {family: steps_of(family) for family in TITLES}
    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    axes = figure.add_subplot()
    height = max(draw_network(axes, 3.1 * i, TITLES[family], steps[family]) for i, family in enumerate(TITLES))
    axes.set_xlim(-1.5, 3.1 * (len(TITLES) - 1) + 1.5)
    axes.set_ylim(-0.5, height + 0.1)
    axes.set_aspect("equal")
    axes.axis("off")
    description = "; ".join(f"{family}: {shown}" for family, shown in steps.items())
    figure.savefig(path, dpi=110, metadata={"Description": description, "Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("blocks.png"))
