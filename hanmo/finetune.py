"""Fine-tune a checkpoint on one's own text, or train a model from the start: all choices made, all results told.

Joins a loaded model with its data, a memory plan and the loop. Knows no command line.

    choose (precision, recomputation, by the memory there is) ─► load ─► data ─► fit ─► what came of it
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hanmo.checkpoint.load import Report, as_tensor
from hanmo.checkpoint.match import config_of, plan
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.source import Source
from hanmo.checkpoint.staged import atomic_path
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.files import errors_as, read_json
from hanmo.loading import load
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tokenizers.load import copy_tokenizer, load_tokenizer, tokenizer_files
from hanmo.training import distributed
from hanmo.training.args import Settings, make_optimizer, scale_outputs
from hanmo.training.curves import tensorboard
from hanmo.training.device import free_memory, held_memory
from hanmo.training.ending import finish, show
from hanmo.training.loop import Outcome, fit
from hanmo.training.lora import ADAPTER_CONFIG, add_lora, name_base
from hanmo.training.memory import Choice, Memory, choose, gib, refuse_unless_fits, return_freed_memory
from hanmo.training.memory import plan as plan_memory
from hanmo.training.objective import Reading, Task, make_task
from hanmo.training.optim.slots import load_slots

__all__ = ["Run", "Wishes", "finetune", "pretrain"]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a run is to be; None leaves a choice to the model, the data and the memory.

    sequence: tokens of a row.   batch: rows of an update.   accumulate: parts that they are computed in.
    steps, minutes, epochs: how long; without any of them 3 epochs.   lr, warmup: the highest rate and steps up to it.
    precision: "float32", "mixed" or "bfloat16" (weights).   lora: rank of adapters that are trained instead.
    memory: bytes to stay within; None takes what is free.   restore_slots: go on from AdaFactor's own moments.
    The rest as in `hanmo.training.args.Settings` and `hanmo.training.objective.Reading`.
    """

    sequence: int | None = None
    batch: int = 1
    accumulate: int = 1
    steps: int | None = None
    minutes: float | None = None
    epochs: float | None = None
    optimizer: str | None = None
    lr: float | None = None
    warmup: int | None = None
    schedule: str = "linear"
    clip: float | None = None
    average: float = 0.0
    precision: str | None = None
    recompute: bool | None = None
    lora: int | None = None
    memory: int | None = None
    restore_slots: bool = False
    compile: bool = False
    early_stopping: int | None = None
    evaluate_every: int | None = None
    held_out: float = 0.05
    separator: str | None = None
    document: str = "file"
    pre_tokenize: bool | None = None
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Where a run happens and what it reads.

    out: its folder.   data, valid: text, packed files or pairs.   prompts: written on from at every evaluation.
    resume: go on from the last checkpoint.   board: show it in TensorBoard.   form: also save as "tensorflow".
    """

    out: Path
    data: Sequence[Path]
    valid: Sequence[Path] = ()
    prompts: Sequence[str] = ()
    resume: bool = False
    board: bool = False
    form: str = "safetensors"


def finetune(
    model: Path,
    run: Run,
    *,
    wishes: Wishes,
    device: torch.device,
    config: Path | None = None,
    family: str | None = None,
    mask: str | None = None,
    tokenizer: Path | None = None,
    console: Console,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Train a checkpoint on text, and tell what came of it.

    model, config, family, mask, tokenizer: as for `hanmo.load`.
    Raises MemoryPlanError if no choice fits the memory, and what loading, packing and `fit` raise.
    """
    return_freed_memory()
    before = held_memory(device)
    with open_source(model) as source:
        found, _ = plan(source, config=config, family=family)
        memory = _choose(found.config, run, wishes, device, optimizer=wishes.optimizer or "adafactor-gpt2-ml")
        slots = _slots(source, config, family) if wishes.restore_slots and not run.resume else None
    console.print(f"planned: {gib(memory.needed)} ({memory.choice})", highlight=False, soft_wrap=True)
    dtype = torch.bfloat16 if memory.choice.precision == "bfloat16" else torch.float32
    loaded = load(
        model, config=config, family=family, mask=mask, dtype=dtype, device=device, tokenizer=tokenizer,
        pre_tokenize=wishes.pre_tokenize,
    )  # fmt: skip
    folder = loaded.path if loaded.path.is_dir() else loaded.path.parent
    beside = _vocabulary(run.out, tokenizer or folder, wishes.pre_tokenize)
    if memory.choice.lora is not None:
        name_base(run.out, loaded.path, config=config and config.resolve(), family=family, mask=mask)
    return _learn(loaded, run, wishes, memory, before, beside, console, progress, slots=slots)


def pretrain(
    config: Path,
    run: Run,
    *,
    wishes: Wishes,
    device: torch.device,
    tokenizer: Path,
    family: str | None = None,
    mask: str | None = None,
    console: Console,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Train a fresh model of a configuration on text, and tell what came of it; errors as in `finetune`."""
    return_freed_memory()
    before = held_memory(device)
    whole = config_of(config, family=family, mask=mask)
    memory = _choose(whole, run, wishes, device, optimizer=wishes.optimizer or "adamw")
    console.print(f"planned: {gib(memory.needed)} ({memory.choice})", highlight=False, soft_wrap=True)
    model = Model(whole).initialize(wishes.seed)
    scale_outputs(model, whole.main.num_layers)
    if memory.choice.precision == "bfloat16":
        model.to(torch.bfloat16)
    loaded = ModelPipeline(
        whole, model.to(device), load_tokenizer(tokenizer, pre_tokenize=wishes.pre_tokenize), Report(), run.out
    )
    return _learn(
        loaded,
        run,
        wishes,
        memory,
        before,
        _vocabulary(run.out, tokenizer, wishes.pre_tokenize),
        console,
        progress,
        fresh=True,
    )


def _choose(config: ModelConfig, run: Run, wishes: Wishes, device: torch.device, *, optimizer: str) -> Memory:
    """Plan the fastest way to train that fits the memory, or the one that a run began with."""
    if run.resume and (chosen := _chosen(run)):
        with errors_as(ConfigError, f"{run.out / 'chosen.json'} does not hold the choice that the run was begun with"):
            return plan_memory(config, Choice(**chosen["choice"]))
    if wishes.lora is not None and wishes.optimizer is None:
        optimizer = "adamw"
    in_backward = optimizer != "muon" and wishes.accumulate == 1 and wishes.clip is None and wishes.lora is None
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    base = Choice(
        optimizer=optimizer, precision="mixed" if half else "float32", lora=wishes.lora, device=device.type,
        in_backward=in_backward and distributed.world() == 1, average=wishes.average > 0,
        sequence=_sequence(config, wishes), batch=-(-wishes.batch // wishes.accumulate),
    )  # fmt: skip
    available = wishes.memory or free_memory(device)
    memory = choose(config, base, available, precision=wishes.precision, recompute=wishes.recompute)
    if distributed.world() == 1:
        refuse_unless_fits(memory, available)
    return memory


def _chosen(run: Run) -> dict[str, Any]:
    """Read what a run chose for itself when it began."""
    path = run.out / "chosen.json"
    return dict(read_json(path, error=ConfigError, advice="; begin again with another out=")) if path.is_file() else {}


def _sequence(config: ModelConfig, wishes: Wishes) -> int:
    return wishes.sequence or min(config.main.context or 512, 1024)


def _learn(
    loaded: ModelPipeline,
    run: Run,
    wishes: Wishes,
    memory: Memory,
    before: int,
    beside: list[Path],
    console: Console,
    progress: Callable[[int, int], None] | None,
    *,
    fresh: bool = False,
    slots: Any = None,
) -> Outcome:
    choice = memory.choice
    if loaded.tokenizer is None:
        raise MissingFile(f"no vocabulary lies beside {loaded.path}; put its vocab.txt there, or give tokenizer=PATH")
    if choice.lora is not None:
        if distributed.world() > 1:
            raise ConfigError(f"LoRA of rank {choice.lora} is trained in one process, not {distributed.world()}")
        add_lora(loaded.model, choice.lora, seed=wishes.seed)
    reading = Reading(
        sequence=choice.sequence, rows=wishes.batch, seed=wishes.seed, held_out=wishes.held_out,
        separator=wishes.separator, document=wishes.document,
    )  # fmt: skip
    task = make_task(
        loaded.config, loaded.tokenizer, run.data, out=run.out / "data", reading=reading, valid=run.valid,
        half=torch.bfloat16 if choice.precision == "mixed" else None, again=run.resume, progress=progress,
    )  # fmt: skip
    settings = _settings(wishes, choice, task, fresh=fresh)
    if run.resume and wishes.warmup is None:
        settings = replace(settings, warmup=_chosen(run).get("warmup", settings.warmup))
    elif distributed.is_main():
        with atomic_path(run.out / "chosen.json") as made:
            made.write_text(json.dumps({"choice": asdict(choice), "warmup": settings.warmup}) + "\n", "utf-8")
    for note in task.notes:
        console.print(note, highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        watch = stack.enter_context(tensorboard(run.out)) if run.board and distributed.is_main() else None
        outcome = fit(
            loaded.model,
            task.data,
            out=run.out,
            settings=settings,
            loss=task.loss,
            optimizer=None if slots is None else partial(_restored, settings=settings, slots=slots),
            evaluate=task.evaluate,
            sample=partial(_write, loaded, run.prompts) if run.prompts and distributed.world() == 1 else None,
            watch=watch,
            beside=[*beside, *([] if choice.lora is None else [run.out / ADAPTER_CONFIG])],
            resume=run.resume,
            console=console,
        )
    if distributed.is_main():
        show(run.out, outcome, console=console)
        if not outcome.stopped:
            used = outcome.peak - before
            finish(loaded.model, run.out, outcome, memory, used, beside=beside, form=run.form, console=console)
    return outcome


def _settings(wishes: Wishes, choice: Choice, task: Task, *, fresh: bool) -> Settings:
    steps, minutes = wishes.steps, wishes.minutes
    if (steps, minutes) == (None, None):
        epochs = 3.0 if wishes.epochs is None else wishes.epochs
        steps = max(
            1, sum(task.steps(epoch) for epoch in range(int(epochs))) + round(epochs % 1 * task.steps(int(epochs)))
        )
    rates = {
        "adafactor-gpt2-ml": 1e-4, "adafactor-bert4keras": 1e-3, "muon": 2e-3 if fresh else 2e-4,
        "adamw": 5e-4 if fresh else 2e-4 if choice.lora else 2e-5,
    }  # fmt: skip
    decays = {"adafactor-gpt2-ml": 0.01, "adafactor-bert4keras": 0.0}
    every = wishes.evaluate_every or max(1, (steps or 2000) // 10)
    clip = wishes.clip if wishes.clip is not None or choice.optimizer.startswith("adafactor") else 1.0
    return Settings(
        steps=steps,
        minutes=minutes,
        optimizer=choice.optimizer,
        lr=wishes.lr or rates[choice.optimizer],
        weight_decay=decays.get(choice.optimizer, 0.1),
        schedule=wishes.schedule,
        warmup=wishes.warmup if wishes.warmup is not None else min(1000, (steps or 1000) // 10),
        clip=None if choice.in_backward else clip,
        average=wishes.average,
        accumulate=wishes.accumulate,
        in_backward=choice.in_backward,
        recompute=choice.recompute,
        early_stopping=wishes.early_stopping,
        bfloat16=choice.precision == "mixed",
        compile=wishes.compile,
        seed=wishes.seed,
        evaluate_every=every,
        save_every=min(500, every),
        log_every=max(1, min(20, (steps or 1000) // 50)),
    )


def _write(loaded: ModelPipeline, prompts: Sequence[str], model: Model) -> str:
    """Write on from each prompt as `hanmo write` would."""
    trained = model.training
    model.eval()
    texts = [f"{json.dumps(prompt, ensure_ascii=False)}\n{loaded.write(prompt, seed=0)[0]}" for prompt in prompts]
    model.train(trained)
    return "\n\n".join(texts)


def _slots(source: Source, config: Path | None, family: str | None) -> Any:
    """Read AdaFactor's moments of a checkpoint: (slots by our names, names stored the other way round, its step)."""
    _, rows = plan(source, config=config, family=family)
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for row in rows:
        for slot in ("vr", "vc", "v"):
            if (name := f"{row.theirs}/adafactor_{slot}") in source.tensors:
                slots.setdefault(row.ours[0], {})[slot] = as_tensor(source.read(name), source.tensors[name].dtype)
    if not slots:
        raise ConfigError(f"{source.path} holds no moments of AdaFactor; leave restore_slots out")
    step = int(source.read("global_step")) if "global_step" in source.tensors else 0
    return slots, {row.ours[0] for row in rows if row.how == "transpose"}, step


def _restored(model: Model, *, settings: Settings, slots: Any) -> Any:
    """Make the optimizer with moments in it."""
    optimizer: Any = make_optimizer(model, settings)
    if settings.optimizer != "adafactor-gpt2-ml":
        raise ConfigError(f"optimizer is {settings.optimizer!r}; the checkpoint's moments are adafactor-gpt2-ml's")
    found, transposed, step = slots
    load_slots(optimizer, found, parameters=dict(model.named_parameters()), transposed=transposed, step=step)
    return optimizer


def _vocabulary(out: Path, tokenizer: Path, pre_tokenize: bool | None) -> list[Path]:
    """Copy a vocabulary where every checkpoint takes it from."""
    if distributed.is_main():
        copy_tokenizer(tokenizer, out / "tokenizer", pre_tokenize=pre_tokenize)
    distributed.agree(None)
    return tokenizer_files(out / "tokenizer")
