"""Train a task on labelled rows: check the data, settle the task, run the loop, keep the best weights by the dev score.

rows ─► settle ─► examples ─► training.fit ─► OUT/best: a folder that `hanmo.load` opens
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import AdamW, Optimizer

from hanmo.errors import ConfigError
from hanmo.loading import load
from hanmo.model_pipeline import ModelPipeline
from hanmo.tasks.batches import TaskBatches, predict
from hanmo.tasks.config import TASK_JSON, Score, TaskArgs, TaskConfig, is_number
from hanmo.tasks.network import Files, build, save_network, tokenizer_of
from hanmo.tasks.readers import Source, read_data
from hanmo.tasks.rows import Row, count_duplicates, split
from hanmo.tasks.steps import task_loss
from hanmo.tasks.table import make_task, task_class
from hanmo.tasks.task import Example, Result, Task, TaskNetwork
from hanmo.tasks.wrappers import Wrap, describe, wrapped
from hanmo.training import distributed
from hanmo.training.args import AUTO, TrainArgs
from hanmo.training.checkpoints import newest, read_state
from hanmo.training.data.epochs import digest
from hanmo.training.loop import fit as run_loop
from hanmo.training.lora import add_lora
from hanmo.training.optim.schedule import parameter_groups
from hanmo.training.step import make_optimizer as plain_optimizer

_OF_TEXTS = ("sequence", "separator", "document", "pre_tokenize", "memory", "restore_slots")  # arguments


@dataclass
class Data:
    """The rows of a run and what was found in them.

    measured_on: name of the dev data.   notes: for people; `hanmo task fit` shows them before it starts.
    """

    train: list[Row]
    dev: list[Row]
    config: TaskConfig
    measured_on: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """The result of a run.

    folder: the best weights, for `hanmo.load`.   score: theirs.   notes: what was found in the data.
    stopped: whether a signal ended it before its last step.
    """

    folder: Path
    score: Score
    notes: Sequence[str]
    steps: int
    stopped: bool = False


def fit(
    model: str | Path | ModelPipeline,
    *,
    train: Source,
    dev: Source | None = None,
    out: str | Path,
    kind: str | None = None,
    config: TaskConfig | None = None,
    args: TrainArgs | None = None,
    layer_decay: float = 1.0,
    head_lr: float = 1.0,
    wrap: Wrap | Sequence[Wrap] = (),
    device: torch.device | str = "cpu",
    resume: bool = False,
    format: str | None = None,
    console: Console | None = None,
) -> Fitted:
    """Fine-tune a model on a task; keep the weights with the best score on dev data.

    model: what `hanmo.load` takes, or gives; its weights are copied.   resume: continue the run in `out`.
    train, dev: rows, or files that `hanmo.tasks.readers.read_data` reads; format is theirs.
    Without dev a share of train is held out (`args.held_out`), rows of equal texts together.
    kind: of `TASKS`; or config, which may leave labels and more to the training data.
    args: usually `TaskArgs`. AUTO: AdamW, 2e-5 (LoRA: 2e-4), linear after a tenth of 3 epochs, evaluated after each.
    layer_decay: factor of the rate from each block to the one below it.   head_lr: factor of the head's rate.
    wrap: training tricks by name or object, or functions (loss, network) → loss; see `hanmo.tasks.wrappers`.
    Raises DataError naming the row that is wrong, ConfigError, and what `hanmo.load` and the loop raise.
    """
    if (kind is None) == (config is None):
        raise ConfigError("give either kind, such as 'classify', or config=TaskConfig(…)")
    config, args = config or TaskConfig(kind=str(kind)), _checked(args or TaskArgs())
    data = prepare(config, train, dev, held_out=args.held_out, seed=args.seed, format=format)
    loaded = model if isinstance(model, ModelPipeline) else load(model, device=device)
    texts = (text for row in data.train[:1000] for text in task_class(config.kind).texts(row))
    vocabulary = tokenizer_of(loaded, texts)
    task = make_task(_with_length(data.config, loaded), loaded._tokenizer())
    network = _adapted(build(loaded.model, task, seed=args.seed), args)
    examples = [task.encode(row) for row in data.train]
    batches = TaskBatches(task, examples, rows=args.batch, seed=args.seed)
    data.notes += [*_describe(examples, len(batches)), *task.notes(examples)]
    if console is not None and distributed.is_main():
        console.print(*data.notes, sep="\n", highlight=False, markup=False, soft_wrap=True)
    args = _with_defaults(args, len(batches), newest(Path(out), "last") if resume else None)
    judge = _Judge(task, data, args.batch, vocabulary)
    outcome = run_loop(
        network,
        batches,
        out=out,
        settings=args,
        loss=wrapped(task_loss, network, wrap, args),
        optimizer=lambda net: make_optimizer(net, args, layer_decay=layer_decay, head_lr=head_lr),
        evaluate=judge,
        save=judge.save,
        resume=resume,
        same=_same(task.config, data, batch=args.batch, layer_decay=layer_decay, head_lr=head_lr, wrap=describe(wrap)),
        console=console,
    )
    score = TaskConfig.read(outcome.folder / TASK_JSON).score
    assert score is not None
    return Fitted(outcome.folder, score, data.notes, outcome.steps, outcome.stopped)


def prepare(
    config: TaskConfig,
    train: Source,
    dev: Source | None,
    *,
    held_out: float = 0.1,
    seed: int = 0,
    format: str | None = None,
) -> Data:
    """Read and check the rows of a run, and settle the task by the training rows; see `fit`."""
    kind = task_class(config.kind)
    kind.check_config(replace(config, head=config.head or kind.heads[0], form=config.form or kind.forms[0]))
    rows = read_data(train, format=format)
    if dev is None:
        config = kind.settle(config, rows)
        settled = config
        rows, held = split(rows, held_out, key=kind.texts, labels=lambda row: kind.labels_of(row, settled), seed=seed)
        found = Data(rows, held, config, "held out")
        found.notes.append(f"held out: {len(held):,} of {len(rows) + len(held):,} rows, drawn with seed {seed}")
    else:
        held = read_data(dev, format=format)
        config = kind.settle(config, rows)
        kind.check_rows(held, config, "the training data")
        found = Data(rows, held, config, str(dev) if isinstance(dev, str | Path) else "dev")
        found.notes.append(f"dev rows: {len(held):,} of {found.measured_on}")
        if both := count_duplicates(held, rows, key=kind.texts):
            found.notes.append(f"{both:,} of the {len(held):,} dev rows have texts that are in the training data too")
    if twice := count_duplicates(rows, key=kind.texts):
        found.notes.append(f"{twice:,} of the {len(rows):,} training rows repeat the text of another")
    if config.labels:
        counts = Counter(label for row in rows for label in kind.labels_of(row, config))
        listed = ", ".join(f"{label} {counts[label]:,}" for label in config.labels[:20])
        found.notes.append(f"labels: {listed}" if len(config.labels) <= 20 else f"labels: {listed} …")
        measured = {label for row in held for label in kind.labels_of(row, config)}
        if left := [label for label in config.labels if label not in counts]:
            found.notes.append(f"{len(left):,} labels are in no training row: {', '.join(left[:10])}")
        if left := [label for label in config.labels if label not in measured]:
            found.notes.append(f"{len(left):,} labels are in no dev row: {', '.join(left[:10])}")
    return found


def make_optimizer(model: nn.Module, args: TrainArgs, *, layer_decay: float = 1.0, head_lr: float = 1.0) -> Optimizer:
    """Make AdamW with a rate for each depth of a `TaskNetwork`: head, blocks from the last to the first, embeddings."""
    assert isinstance(model, TaskNetwork)
    for name, value in (("layer_decay", layer_decay), ("head_lr", head_lr)):
        if not is_number(value) or not value > 0:
            raise ConfigError(f"{name} is {value!r}; expected a factor of the rate above 0")
    if args.optimizer != "adamw":
        if layer_decay != 1 or head_lr != 1:
            raise ConfigError(f"optimizer is {args.optimizer!r}; layer_decay and head_lr need 'adamw'")
        return plain_optimizer(model, args)
    depth = model.backbone.config.main.num_layers
    found: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parts[0] == "head":
            rate = head_lr * model.task.head_rate(".".join(parts[1:]))
        elif "blocks" in parts:
            rate = layer_decay ** (depth - 1 - int(parts[parts.index("blocks") + 1]))
        else:
            rate = 1.0 if parts[1] in ("pooler", "output") else layer_decay**depth
        found.setdefault(rate, []).append((name, parameter))
    groups = [
        group
        for rate, named in found.items()
        for group in parameter_groups(named, lr=args.lr * rate, weight_decay=args.weight_decay)
    ]
    return AdamW(groups, lr=args.lr, betas=args.betas, fused=True)


class _Judge:
    """Measures a network on dev rows, and saves it with what the last evaluation found."""

    def __init__(self, task: Task, data: Data, batch: int, vocabulary: Files) -> None:
        self.task, self.data, self.batch, self.vocabulary = task, data, batch, vocabulary
        self.config, self.examples = task.config, [task.encode(row) for row in data.dev]
        task.fitting = True

    def __call__(self, network: TaskNetwork) -> dict[str, Any]:
        results: Sequence[Result] = list(predict(network, self.examples, batch=self.batch))
        config, results = self.task.calibrate(self.data.dev, results)
        scores, name = self.task.measure(self.data.dev, results), self.task.main_score
        self.config = replace(config, score=Score(name, scores[name], self.data.measured_on, scores))
        return {**scores, "score": name, "higher_is_better": True}

    def save(self, network: TaskNetwork, folder: Path) -> None:
        save_network(network, folder, self.config, self.vocabulary, overwrite=True)


def _checked(args: TrainArgs) -> TrainArgs:
    """Return arguments of the loop. Raises ConfigError for one that is of training on texts alone."""
    default = TrainArgs()
    for name in _OF_TEXTS:
        if (value := getattr(args, name)) != getattr(default, name):
            instead = "give max_length of TaskConfig" if name == "sequence" else "leave it out"
            raise ConfigError(f"{name} is {value!r}, which has no effect on a task; {instead}")
    if args.precision == "bfloat16":
        raise ConfigError(
            "precision is 'bfloat16', whose weights are too coarse for the small steps of fine-tuning; use 'mixed', "
            "which computes in bfloat16 and keeps float32 weights"
        )
    return args


def _same(config: TaskConfig, data: Data, **arguments: object) -> dict[str, str]:
    """Return what a resumed run has to have again, as text or its digest."""
    train, dev = (digest(dict(row.data) for row in rows) for rows in (data.train, data.dev))
    found = {"training data": train, "dev data": dev, "task": replace(config, score=None).to_json()}
    return found | {name: str(value) for name, value in arguments.items()}


def _adapted(network: TaskNetwork, args: TrainArgs) -> TaskNetwork:
    """Add the adapters that arguments ask for. A pooler is often new, so it is trained as the head is."""
    if args.lora is None:
        return network
    distributed.check_single(f"LoRA of rank {args.lora}")
    add_lora(network.backbone, args.lora, seed=args.seed)
    if network.backbone.pooler is not None:
        network.backbone.pooler.requires_grad_(True)
    return network


def _with_length(config: TaskConfig, loaded: ModelPipeline) -> TaskConfig:
    """Return the configuration with the length of a window, which the model's positions limit."""
    context = loaded.config.main.context
    if context is not None and (config.max_length or 0) > context:
        raise ConfigError(f"max_length is {config.max_length}; the model of {loaded.path} knows {context} positions")
    return replace(config, max_length=config.max_length or min(512, context or 512))


def _with_defaults(args: TrainArgs, batches: int, last: Path | None) -> TrainArgs:
    """Fill in what suits fine-tuning.

    batches: of an epoch.   last: the checkpoint that is resumed; its run's warm-up stays, whatever its length is now.
    """
    if last is not None:
        args = args.filled(warmup=read_state(last).get("settings", {}).get("warmup", AUTO))
    steps = args.steps
    if steps is None and args.minutes is None:
        steps = max(1, round((args.epochs or 3.0) * batches))
    return replace(args, steps=steps).filled(
        optimizer="adamw",
        lr=2e-5 if args.lora is None else 2e-4,
        weight_decay=0.01,
        schedule="linear",
        warmup=(steps or 1000) // 10,
        evaluate_every=batches,
        save_every=batches,
        log_every=max(1, min(20, (steps or 1000) // 50)),
    )


def _describe(examples: Sequence[Example], batches: int) -> list[str]:
    lengths = sorted(sum(map(len, example.tokens)) for example in examples)
    windows = sum(len(example.windows) for example in examples)
    long = sum(len(example.windows) > 1 for example in examples)
    return [
        f"training rows: {len(examples):,}, of {lengths[len(lengths) // 2]:,} tokens (median) to {lengths[-1]:,}",
        f"windows: {windows:,}, for {long:,} rows are longer than one; {batches:,} batches an epoch",
    ]
