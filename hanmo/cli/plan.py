"""`hanmo plan`: print which ways of training a checkpoint fit in a given memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hanmo.cli import options as shared
from hanmo.cli.screen import aligned, echo_json
from hanmo.errors import ConfigError

if TYPE_CHECKING:
    from hanmo.training.memory import Memory


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
    from hanmo.cores import has_fast_bfloat16
    from hanmo.training.args import TrainArgs
    from hanmo.training.memory import choose, gib, largest_batch, parse_size, table

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
    best = choose(config, base, there, first="mixed" if device == "cuda" or has_fast_bfloat16() else "float32")
    fits = best.needed <= there
    lengths = sorted({max(1, base.sequence // part) for part in (4, 2, 1)})
    batches = {n: largest_batch(config, replace(best.choice, sequence=n), there) for n in lengths} if fits else {}
    if as_json:
        plans = [row.as_dict() | {"fits": row.needed <= there} for row in rows]
        told = {"model": str(model), "parameters": found.parameters, "memory": there, "plans": plans}
        told |= {"recommended": best.as_dict() if fits else None, "largest_batch": batches, "adam": _adam(rows, there)}
        echo_json(told)
        return
    typer.echo(f"{model.name}: {found.family}, {found.parameters:,} parameters; memory {gib(there)}")
    typer.echo(aligned([*_table(rows, there)], right=range(4, 8)))
    if fits:
        room = ", ".join(f"{count:,} of {length:,} tokens" for length, count in batches.items())
        typer.echo(f"Recommended: {best.choice.describe()}; needs {gib(best.needed)}")
        typer.echo(f"Rows that fit at once that way: {room}")
    else:
        adapters = replace(base, lora=8, optimizer="adamw", in_backward=False, precision="bfloat16")
        least = choose(config, adapters, there)
        why = "fits" if least.needed <= there else "does not fit either"
        typer.echo("Nothing here fits; a shorter --sequence or a smaller --batch may, or adapters:")
        typer.echo(f"--lora 8: {least.choice.describe()} needs {gib(least.needed)}, which {why}")
    typer.echo(_adam(rows, there))


def _free(device: str) -> int:
    import torch

    from hanmo.training.memory import free_memory

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', which torch cannot use here; say what the GPU has, as in --memory 22GiB")
    return free_memory(torch.device(device))


def _table(rows: list[Memory], there: int) -> Iterator[tuple[str, ...]]:
    from hanmo.training.memory import gib

    yield "optimizer", "precision", "gradients", "recompute", "static", "activations", "transient", "needed", ""
    for row in rows:
        choice, sizes = row.choice, (row.static, row.activations, row.transient, row.needed)
        gradients, recompute = "in backward" if choice.in_backward else "whole", "yes" if choice.recompute else "no"
        fits = "fits" if row.needed <= there else f"{gib(row.needed - there)} too much"
        yield choice.optimizer, choice.precision, gradients, recompute, *map(gib, sizes), fits


def _adam(rows: list[Memory], there: int) -> str:
    """Say in one or two sentences why plain Adam fits or does not."""
    from hanmo.training.memory import gib

    adam = [row for row in rows if row.choice.optimizer == "adamw" and row.choice.precision == "float32"]
    (plain, freed) = (
        next(row for row in adam if row.choice.in_backward == freed and not row.choice.recompute)
        for freed in (False, True)
    )
    parts = (
        f"weights {gib(plain.weights)} + gradients {gib(plain.gradients)} + two moments {gib(plain.optimizer)} = "
        f"{gib(plain.static)}"
    )
    rest = plain.activations + plain.transient
    if plain.needed <= there:
        return f"Adam fits: {parts}, and {gib(rest)} for a step"
    if plain.static > there:
        why = f"Adam does not fit, whatever the batch: {parts}, more than {gib(there)}"
    else:
        why = f"Adam does not fit: {parts}, and {gib(rest)} for a step make {gib(plain.needed)} of {gib(there)}"
    return f"{why}. With update in backward it has {gib(freed.static)} static, without whole gradients"
