"""What comes of a run: weights to use, curves to look at, and in words how much better it got and what that took.

Knows a trained model and the folder of its run. Knows no data and no step.
"""

from pathlib import Path

import torch
from rich.console import Console

from hanmo.checkpoint.save import save
from hanmo.errors import MissingExtra
from hanmo.model import Model
from hanmo.training import distributed
from hanmo.training.checkpoints import fill_from
from hanmo.training.curves import draw_curves
from hanmo.training.log import read_log
from hanmo.training.loop import SCORE, Outcome
from hanmo.training.lora import merge_lora, save_lora
from hanmo.training.memory import Memory, gib

__all__ = ["finish", "show"]


def show(out: Path, outcome: Outcome, *, console: Console) -> None:
    """Say how the held-out score changed so far, and draw the curves."""
    records = [record for record in read_log(out / "log.jsonl") if "evaluation" in record]
    if not records:
        return
    unit = SCORE if SCORE in records[0]["evaluation"] else "loss"
    scores = [record["evaluation"][unit] for record in records]
    best = records[scores.index(min(scores))]
    said = [
        f"{unit.replace('_', ' ')}, held out: {scores[0]:.4f} before, {min(scores):.4f} after (step {best['step']} of "
        f"{outcome.steps})"
    ]
    try:
        said.append(f"curves: {draw_curves(out, unit=unit)}")
    except MissingExtra as error:
        said.append(str(error))
    for line in said:
        console.print(line, highlight=False, soft_wrap=True)


def finish(
    model: Model,
    out: Path,
    outcome: Outcome,
    memory: Memory,
    measured: int,
    *,
    beside: list[Path],
    form: str,
    console: Console,
) -> None:
    """Merge adapters, save the form that was asked for, and say what training took and how to use its result.

    measured: bytes that the steps took, evaluations left out.   beside: files of the vocabulary.
    form: "tensorflow" saves that too.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    folder = outcome.folder
    if memory.choice.lora is not None:
        fill_from(model, folder)
        save_lora(model, out / "adapters.safetensors")
        merge_lora(model)
        folder = save(model, out / "merged", tokenizer=beside, overwrite=True).path
    elif (out / "best").exists():
        folder = out / "best"
    say(f"memory of a step: planned {gib(memory.peak)}, measured {gib(measured)}")
    if form == "tensorflow":
        if memory.choice.lora is None:
            model = model if distributed.world() == 1 else Model(model.config)
            fill_from(model, outcome.folder)
        path = out / "tensorflow" / "model.ckpt"
        made = save(model, path, form=form, dtype=torch.float32, tokenizer=beside, overwrite=True)
        say(f"in the original's form: {made.path}")
    if model.config.can_generate:
        say(f"to write with it: hanmo write 今天天气不错 --model {folder}")
    else:
        say(f"to use it: hanmo.load({str(folder)!r})")
