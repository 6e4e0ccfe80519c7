"""Fine-tune a checkpoint on text, or train a model from scratch: make all choices, report all results.

Joins a loaded model with its data, a memory plan and the loop. Knows no command line.

    plan (precision, recomputation, by the available memory) ─► load ─► data ─► fit ─► report
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hanmo.checkpoint.load import Report, as_tensor
from hanmo.checkpoint.match import config_of, plan
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.save import save
from hanmo.checkpoint.source import Source
from hanmo.checkpoint.staged import atomic_path
from hanmo.config import ModelConfig
from hanmo.cores import has_fast_bfloat16
from hanmo.errors import ConfigError, MissingExtra, MissingFile
from hanmo.families.family import Row
from hanmo.files import errors_as, read_json
from hanmo.loading import load
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tokenizers.load import copy_tokenizer, load_tokenizer, tokenizer_files
from hanmo.training import distributed
from hanmo.training.args import AUTO, TrainArgs
from hanmo.training.checkpoints import fill_from
from hanmo.training.log import draw_curves, read_log, tensorboard
from hanmo.training.loop import Outcome, fit
from hanmo.training.lora import ADAPTER_CONFIG, add_lora, merge_lora, name_base, save_lora
from hanmo.training.memory import Memory, choose, free_memory, gib, held_memory, refuse_unless_fits, return_freed_memory
from hanmo.training.memory import plan as plan_memory
from hanmo.training.objective import Task, make_task
from hanmo.training.optim.adafactor import load_slots
from hanmo.training.score import evaluating, score_of
from hanmo.training.step import make_optimizer, scale_outputs

_KEPT = ("optimizer", "precision", "in_backward", "recompute", "sequence", "lora")  # choices that resuming repeats


@dataclass(frozen=True)
class Run:
    """Where a run happens and what it reads.

    out: its folder.   data, valid: text, packed files or pairs.   prompts: continued at every evaluation.
    resume: continue from the last checkpoint.   board: write for TensorBoard.   form: also save as "tensorflow".
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
    args: TrainArgs,
    device: torch.device,
    config: Path | None = None,
    family: str | None = None,
    mask: str | None = None,
    tokenizer: Path | None = None,
    console: Console,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Train a checkpoint on text and report the result.

    args: AUTO is chosen by the model, the data and the available memory.   config, family, mask, tokenizer: as for
    `hanmo.load`.
    Raises MemoryPlanError if nothing fits the memory, and what loading, packing and `fit` raise.
    """
    return_freed_memory()
    before = held_memory(device)
    with open_source(model) as source:
        found, rows = plan(source, config=config, family=family)
        memory = _choose(found.config, run, args, device, optimizer="adafactor-gpt2-ml", console=console)
        restored = _restored(source, rows, memory.choice) if args.restore_slots and not run.resume else None
    dtype = torch.bfloat16 if memory.choice.precision == "bfloat16" else torch.float32
    loaded = load(
        model, config=config, family=family, mask=mask, dtype=dtype, device=device, tokenizer=tokenizer,
        pre_tokenize=args.pre_tokenize,
    )  # fmt: skip
    if memory.choice.lora is not None:
        name_base(run.out, loaded.path, config=config and config.resolve(), family=family, mask=mask)
    words = tokenizer or (loaded.path if loaded.path.is_dir() else loaded.path.parent)
    return _train(loaded, run, memory, words, before, console, progress, optimizer=restored)


def pretrain(
    config: Path,
    run: Run,
    *,
    args: TrainArgs,
    device: torch.device,
    tokenizer: Path,
    family: str | None = None,
    mask: str | None = None,
    console: Console,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Train a new model of a configuration on text and report the result; arguments and errors as in `finetune`."""
    return_freed_memory()
    before = held_memory(device)
    full = config_of(config, family=family, mask=mask)
    memory = _choose(full, run, args, device, optimizer="adamw", console=console)
    model = Model(full).initialize(args.seed)
    scale_outputs(model, full.main.num_layers)
    if memory.choice.precision == "bfloat16":
        model.to(torch.bfloat16)
    words = load_tokenizer(tokenizer, pre_tokenize=args.pre_tokenize)
    loaded = ModelPipeline(full, model.to(device), words, Report(), run.out)
    return _train(loaded, run, memory, tokenizer, before, console, progress, fresh=True)


def _choose(
    config: ModelConfig, run: Run, args: TrainArgs, device: torch.device, *, optimizer: str, console: Console
) -> Memory:
    """Plan the fastest way to train that fits the memory, or repeat the choice of the run that is resumed."""
    args = replace(args, device=device.type)
    if run.resume and (chosen := _chosen(run)):
        with errors_as(ConfigError, f"{run.out / 'chosen.json'} does not hold the choice that the run was begun with"):
            kept = {name: chosen["choice"][name] for name in _KEPT if name in chosen["choice"]}
            memory = plan_memory(config, replace(args, **kept).filled(warmup=chosen.get("warmup", AUTO)))
    else:
        args = args.filled(
            optimizer=optimizer if args.lora is None else "adamw", sequence=min(config.main.context or 512, 1024)
        )
        unclipped = args.clip in (AUTO, None)
        alone = args.accumulate == 1 and args.lora is None and distributed.world() == 1
        args = args.filled(in_backward=args.optimizer != "muon" and unclipped and alone)
        available = args.memory or free_memory(device)
        half = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_fast_bfloat16()
        memory = choose(config, args, available, first="mixed" if half else "float32")
        if distributed.world() == 1:
            refuse_unless_fits(memory, available)
    console.print(f"planned: {gib(memory.needed)} ({memory.choice.describe()})", highlight=False, soft_wrap=True)
    return memory


def _chosen(run: Run) -> dict[str, Any]:
    """Read the choices that a run made when it began."""
    path = run.out / "chosen.json"
    return dict(read_json(path, error=ConfigError, advice="; begin again with another out=")) if path.is_file() else {}


def _train(
    loaded: ModelPipeline,
    run: Run,
    memory: Memory,
    vocabulary: Path,
    before: int,
    console: Console,
    progress: Callable[[int, int], None] | None,
    *,
    fresh: bool = False,
    optimizer: Callable[[TrainArgs, Model], Any] | None = None,
) -> Outcome:
    args, main = memory.choice, distributed.is_main()
    if loaded.tokenizer is None:
        raise MissingFile(f"no vocabulary beside {loaded.path}; put its vocab.txt there, or give tokenizer=PATH")
    if args.lora is not None:
        distributed.check_single(f"LoRA of rank {args.lora}")
        add_lora(loaded.model, args.lora, seed=args.seed)
    if main:  # each checkpoint copies the vocabulary from here
        copy_tokenizer(vocabulary, run.out / "tokenizer", pre_tokenize=args.pre_tokenize)
    distributed.agree(None)
    beside = tokenizer_files(run.out / "tokenizer")
    task = make_task(
        loaded.config, loaded.tokenizer, run.data, out=run.out / "data", args=args, valid=run.valid, again=run.resume,
        progress=progress,
    )  # fmt: skip
    args = _with_defaults(args, task, fresh=fresh)
    if main and not (run.resume and _chosen(run)):
        with atomic_path(run.out / "chosen.json") as made:
            made.write_text(json.dumps({"choice": args.choices(), "warmup": args.warmup}) + "\n", "utf-8")
    for note in task.notes:
        console.print(note, highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        watch = stack.enter_context(tensorboard(run.out)) if run.board and main else None
        outcome = fit(
            loaded.model,
            task.data,
            out=run.out,
            settings=args,
            loss=task.loss,
            optimizer=optimizer and partial(optimizer, args),
            evaluate=task.evaluate,
            sample=partial(_write, loaded, run.prompts) if run.prompts and distributed.world() == 1 else None,
            watch=watch,
            beside=[*beside, *([] if args.lora is None else [run.out / ADAPTER_CONFIG])],
            resume=run.resume,
            same=task.same,
            console=console,
        )
    if main:
        _report(loaded.model, run, outcome, memory, outcome.peak - before, beside, console)
    return outcome


def _with_defaults(args: TrainArgs, task: Task, *, fresh: bool) -> TrainArgs:
    """Set the length of the run and everything that is still AUTO; fresh: the model is not trained yet."""
    steps = args.steps
    if steps is None and args.minutes is None:
        epochs = 3.0 if args.epochs is None else args.epochs
        full, rest = sum(map(task.steps, range(int(epochs)))), epochs % 1 * task.steps(int(epochs))
        steps = max(1, full + round(rest))
    rates = {
        "adafactor-gpt2-ml": 1e-4, "adafactor-bert4keras": 1e-3, "muon": 2e-3 if fresh else 2e-4,
        "adamw": 5e-4 if fresh else 2e-4 if args.lora else 2e-5,
    }  # fmt: skip
    decays = {"adafactor-gpt2-ml": 0.01, "adafactor-bert4keras": 0.0}
    args = replace(args, steps=steps).filled(evaluate_every=max(1, (steps or 2000) // 10))
    return args.filled(
        lr=rates[args.optimizer],
        weight_decay=decays.get(args.optimizer, 0.1),
        schedule="cosine" if fresh else "linear",
        warmup=min(1000, (steps or 1000) // 10),
        clip=None if args.in_backward or args.uses_adafactor else 1.0,
        save_every=min(500, args.evaluate_every),
        log_every=max(1, min(20, (steps or 1000) // 50)),
    )


def _write(loaded: ModelPipeline, prompts: Sequence[str], model: Model) -> str:
    """Continue each prompt as `hanmo write` would."""
    with evaluating(model):
        texts = [f"{json.dumps(prompt, ensure_ascii=False)}\n{loaded.write(prompt, seed=0)[0]}" for prompt in prompts]
    return "\n\n".join(texts)


def _report(
    model: Model, run: Run, outcome: Outcome, memory: Memory, measured: int, beside: list[Path], console: Console
) -> None:
    """Show the scores and draw curves; unless stopped, merge adapters, save in the asked form and say how to use it.

    measured: bytes that the steps took, without evaluations.   beside: files of the vocabulary.
    """
    say, out, folder = partial(console.print, highlight=False, soft_wrap=True), run.out, outcome.folder
    if records := [record for record in read_log(out / "log.jsonl") if "evaluation" in record]:
        unit, higher = score_of(records[0]["evaluation"])
        scores = [record["evaluation"][unit] for record in records]
        best = max(scores) if higher else min(scores)
        step = records[scores.index(best)]["step"]
        name = unit.replace("_", " ")
        say(f"{name}, held out: {scores[0]:.4f} before, {best:.4f} after (step {step} of {outcome.steps})")
        try:
            say(f"curves: {draw_curves(out, unit=unit)}")
        except MissingExtra as error:
            say(str(error))
    if outcome.stopped:
        return
    if memory.choice.lora is not None:
        fill_from(model, folder)
        save_lora(model, out / "adapters.safetensors")
        merge_lora(model)
        folder = save(model, out / "merged", tokenizer=beside, overwrite=True).path
    elif (out / "best").exists():
        folder = out / "best"
    say(f"memory of a step: planned {gib(memory.peak)}, measured {gib(measured)}")
    if run.form == "tensorflow":
        if memory.choice.lora is None:
            model = model if distributed.world() == 1 else Model(model.config)
            fill_from(model, outcome.folder)
        path = out / "tensorflow" / "model.ckpt"
        made = save(model, path, form=run.form, dtype=torch.float32, tokenizer=beside, overwrite=True)
        say(f"in the original's form: {made.path}")
    if model.config.can_generate:
        say(f"to write with it: hanmo write 今天天气不错 --model {folder}")
    else:
        say(f"to use it: hanmo.load({str(folder)!r})")


def _restored(source: Source, rows: Sequence[Row], args: TrainArgs) -> Callable[[TrainArgs, Model], Any]:
    """Read a checkpoint's moments of AdaFactor; return the function that makes the optimizer with them."""
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for row in rows:
        for slot in ("vr", "vc", "v"):
            if (name := f"{row.theirs}/adafactor_{slot}") in source.tensors:
                slots.setdefault(row.ours[0], {})[slot] = as_tensor(source.read(name), source.tensors[name].dtype)
    if not slots:
        raise ConfigError(f"{source.path} holds no moments of AdaFactor; leave restore_slots out")
    if args.optimizer != "adafactor-gpt2-ml":
        raise ConfigError(f"optimizer is {args.optimizer!r}; the checkpoint's moments are adafactor-gpt2-ml's")
    step = int(source.read("global_step")) if "global_step" in source.tensors else 0
    transposed = {row.ours[0] for row in rows if row.how == "transpose"}

    def make(args: TrainArgs, model: Model) -> Any:
        optimizer: Any = make_optimizer(model, args)
        load_slots(optimizer, slots, parameters=dict(model.named_parameters()), transposed=transposed, step=step)
        return optimizer

    return make
