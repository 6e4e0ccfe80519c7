"""`hanmo plan`: print which ways of training a checkpoint fit in a given memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hanmo.cli import options as shared
from hanmo.errors import ConfigError

if TYPE_CHECKING:
    from hanmo.config import ModelConfig
    from hanmo.training.args import TrainArgs
    from hanmo.training.memory import Memory

__all__ = ["plan"]


def plan(
    model: Annotated[Path, typer.Option(help="The checkpoint, as for `hanmo inspect`; a .index alone is enough.")],
    memory: shared.Memory = None,
    sequence: shared.Sequence = None,
    batch: shared.Batch = 1,
    lora: shared.Lora = None,
    device: Annotated[str, typer.Option(help="Where training runs: cpu or cuda.")] = "cpu",
    as_json: shared.Json = False,
) -> None:
    """List which ways of training fit in memory, before anything is loaded.

    Reads names and shapes only. Static are weights, gradients and the optimizer's state; activations grow with
    sequence and batch.

    For example:

      hanmo plan --model models/mega/model.ckpt-100000 --memory 22GiB

      hanmo plan --model model.ckpt-100000.index --memory 8G --sequence 512 --json
    """
    from hanmo.checkpoint.inspect import inspect
    from hanmo.training.args import TrainArgs
    from hanmo.training.memory import choose, largest_batch, parse_size, table

    there = parse_size(memory) if memory is not None else _free(device)
    found = inspect(model).found
    config, context = found.config, found.config.main.context
    if sequence is not None and context is not None and sequence > context:
        raise ConfigError(f"sequence is {sequence}; this model knows {context} positions")
    base = TrainArgs(
        optimizer="adafactor-gpt2-ml" if lora is None else "adamw", in_backward=lora is None, batch=batch,
        sequence=sequence or min(1024, context or 512), lora=lora, device=device,
    )  # fmt: skip
    rows = table(config, base)
    best: Memory | None = choose(config, base, there, first="mixed" if device == "cuda" else "float32")
    best = best if best is not None and best.needed <= there else None
    lengths = sorted({max(1, base.sequence // part) for part in (4, 2, 1)})
    batches = {n: largest_batch(config, replace(best.choice, sequence=n), there) for n in lengths} if best else {}
    if as_json:
        object_ = {
            "model": str(model),
            "parameters": found.parameters,
            "memory": there,
            "plans": [row.as_dict() | {"fits": row.needed <= there} for row in rows],
            "recommended": best and best.as_dict(),
            "largest_batch": batches,
            "adam": _adam(rows, there),
        }
        typer.echo(json.dumps(object_, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{model.name}: {found.family}, {found.parameters:,} parameters; memory {_size(there)}")
        _print(rows, there)
        _advise(config, base, best, batches, there)
        typer.echo(_adam(rows, there))


def _free(device: str) -> int:
    import torch

    from hanmo.training.memory import free_memory

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', which torch cannot use here; say what the GPU has, as in --memory 22GiB")
    return free_memory(torch.device(device))


def _print(rows: list[Memory], there: int) -> None:
    lines: list[tuple[str, ...]] = [
        ("optimizer", "precision", "gradients", "recompute", "static", "activations", "transient", "needed", "")
    ]
    for row in rows:
        choice = row.choice
        lines.append(
            (
                choice.optimizer,
                choice.precision,
                "in backward" if choice.in_backward else "whole",
                "yes" if choice.recompute else "no",
                *map(_size, (row.static, row.activations, row.transient, row.needed)),
                "fits" if row.needed <= there else f"{_size(row.needed - there)} too much",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:{'>' if 4 <= i < 8 else '<'}{widths[i]}}" for i, cell in enumerate(line))
        typer.echo("  ".join(cells).rstrip())


def _advise(config: ModelConfig, base: TrainArgs, best: Memory | None, batches: dict[int, int], there: int) -> None:
    from hanmo.training.memory import choose

    if best is not None:
        typer.echo(f"Recommended: {best.choice.describe()}; needs {_size(best.needed)}")
        room = ", ".join(f"{count:,} of {length:,} tokens" for length, count in batches.items())
        typer.echo(f"Rows that fit at once that way: {room}")
        return
    typer.echo("Nothing here fits; a shorter --sequence or a smaller --batch may, or adapters:")
    adapters = replace(base, lora=8, optimizer="adamw", in_backward=False, precision="bfloat16")
    smallest = choose(config, adapters, there)
    fits = "fits" if smallest.needed <= there else "does not fit either"
    typer.echo(f"--lora 8: {smallest.choice.describe()} needs {_size(smallest.needed)}, which {fits}")


def _adam(rows: list[Memory], there: int) -> str:
    """Say in one or two sentences why plain Adam fits or does not."""
    adam = {
        (row.choice.in_backward, row.choice.recompute): row
        for row in rows
        if row.choice.optimizer == "adamw" and row.choice.precision == "float32"
    }
    plain = adam[False, False]
    parts = (
        f"weights {_size(plain.weights)} + gradients {_size(plain.gradients)} + two moments {_size(plain.optimizer)} "
        f"= {_size(plain.static)}"
    )
    if plain.needed <= there:
        return f"Adam fits: {parts}, and {_size(plain.activations + plain.transient)} for a step"
    if plain.static > there:
        why = f"Adam does not fit, whatever the batch: {parts}, more than {_size(there)}"
    else:
        rest = plain.activations + plain.transient
        why = f"Adam does not fit: {parts}, and {_size(rest)} for a step make {_size(plain.needed)} of {_size(there)}"
    return f"{why}. With update in backward it has {_size(adam[True, False].static)} static, without whole gradients"


def _size(size: int) -> str:
    from hanmo.training.memory import gib

    return gib(size)
