"""What a training run is told: one dataclass for the command line, the memory plan, the data and the loop.

Knows names and ranges; imports no torch.
"""

from dataclasses import InitVar, asdict, dataclass, fields, replace
from typing import Any

from hanmo.errors import ConfigError

AUTO: Any = "auto"  # leaves the value to whoever trains: `fit`, or `hanmo.finetune` by model, data and memory
OPTIMIZERS = ("adamw", "muon", "adafactor-gpt2-ml", "adafactor-bert4keras")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "mixed", "bfloat16")
_CHOICES = {
    "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "device": ("cpu", "cuda"),
}  # fmt: skip
_POSITIVE = (
    "steps", "minutes", "epochs", "sequence", "batch", "accumulate", "lr", "clip", "average_every", "lora",
    "early_stopping", "evaluate_every", "save_every", "log_every",
)  # fmt: skip
_LOOP = {  # what `fit` takes for AUTO
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup": 200, "clip": 1.0,
    "in_backward": False, "recompute": False, "evaluate_every": 1000, "save_every": 500, "log_every": 20,
}  # fmt: skip
# What a step depends on; a run is resumed with the same values of these.
_OF_A_STEP = (
    "optimizer", "lr", "betas", "weight_decay", "schedule", "warmup", "floor", "clip", "average", "average_every",
    "accumulate", "in_backward", "recompute", "seed",
)  # fmt: skip
_PLANNED = ("optimizer", "precision", "in_backward", "recompute", "sequence", "batch", "average", "lora", "device")


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Arguments of a training run; `fit` needs `steps` or `minutes`, everything else has a default.

    steps: updates.   minutes: of the whole run, evaluations and saving included; the number of steps is fixed once the
        speed is known.   epochs: passes over the data; `hanmo.finetune` makes steps of it, 3 epochs by default.
    sequence: tokens of a row (of source and target each, where there are two).   batch: rows of an update.
    accumulate: parts a batch is computed in, one after the other; the update is that of the whole batch.
    held_out: share of the data for evaluation.   separator: token after every document; None takes the vocabulary's end
        mark if it has one (not [SEP]).   document: what one document of a text file is: "file", "line", "paragraph".
    pre_tokenize: as for `hanmo.load`.
    lr: the highest rate, after `warmup` steps.   floor: share of it at the end.   weight_decay: of matrices only.
    clip: largest norm of the whole gradient; None does not clip.
    average: momentum of a moving average of the weights, updated every `average_every` steps and evaluated at the end;
        0 is off.
    precision: "float32"; "mixed", float32 weights that compute in bfloat16 (autocast); "bfloat16" weights. In `fit`
        AUTO is "mixed" on a GPU.
    in_backward: apply and free each gradient as soon as it exists (optim/in_backward.py); needs clip=None.
    recompute: compute each block again in the backward pass instead of keeping its activations.
    lora: rank of adapters that are trained instead of the weights; None trains all weights.
    device: where the memory plan assumes the training to run, "cpu" or "cuda".   memory: bytes to stay within; None
        takes what is free.   restore_slots: start from AdaFactor's moments in the checkpoint.
    early_stopping: evaluations in a row without a better score after which the run ends; None never ends it.
    bfloat16: the name of `precision` in version 0.1: True is "mixed", False "float32".
    Raises ConfigError for a value outside its range.
    """

    steps: int | None = None
    minutes: float | None = None
    epochs: float | None = None
    sequence: int = AUTO
    batch: int = 1
    accumulate: int = 1
    held_out: float = 0.05
    separator: str | None = None
    document: str = "file"
    pre_tokenize: bool | None = None
    optimizer: str = AUTO
    lr: float = AUTO
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = AUTO
    schedule: str = AUTO
    warmup: int = AUTO
    floor: float = 0.0
    clip: float | None = AUTO
    average: float = 0.0
    average_every: int = 8
    precision: str = AUTO
    in_backward: bool = AUTO
    recompute: bool = AUTO
    lora: int | None = None
    device: str = "cpu"
    memory: int | None = None
    restore_slots: bool = False
    compile: bool = False
    early_stopping: int | None = None
    evaluate_every: int = AUTO
    save_every: int = AUTO
    log_every: int = AUTO
    seed: int = 0
    bfloat16: InitVar[bool | None] = None

    def __post_init__(self, bfloat16: bool | None) -> None:
        if bfloat16 is not None and self.precision == AUTO:
            object.__setattr__(self, "precision", "mixed" if bfloat16 else "float32")
        if self.steps is not None and self.minutes is not None:
            raise ConfigError(f"steps is {self.steps}, minutes is {self.minutes}; give one of them")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in (AUTO, *choices):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value not in (None, AUTO) and not value > 0:
                raise ConfigError(f"{name} is {value}; expected a number above 0")
        for name in ("warmup", "weight_decay"):
            value = getattr(self, name)
            if value != AUTO and value < 0:
                raise ConfigError(f"{name} is {value}; expected 0 or more")
        for name, share in (("floor", self.floor), ("average", self.average)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} is {share}; expected 0 or more and less than 1")

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch that are computed together."""
        return -(-self.batch // self.accumulate)

    @property
    def uses_adafactor(self) -> bool:
        """Whether the optimizer is one of the AdaFactors."""
        return self.optimizer.startswith("adafactor")

    def filled(self, **defaults: Any) -> "TrainArgs":
        """Return the arguments with these values in place of AUTO."""
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) == AUTO})

    def for_loop(self) -> "TrainArgs":
        """Return the arguments with `fit`'s defaults in place of AUTO."""
        return self.filled(**_LOOP)

    def choices(self) -> dict[str, Any]:
        """Return what decides how much memory a step takes, as `hanmo plan --json` prints it."""
        values = {name: getattr(self, name) for name in _PLANNED}
        return values | {"batch": self.rows_at_once, "average": self.average > 0}

    def describe(self) -> str:
        """Return the choices in one line for people."""
        update = "update in backward" if self.in_backward else "whole gradients"
        again = "recomputation" if self.recompute else "no recomputation"
        lora = f", LoRA of rank {self.lora}" if self.lora else ""
        return (
            f"{self.optimizer}{lora}, {self.precision}, {update}, {again}, sequence {self.sequence:,}, "
            f"batch {self.rows_at_once:,}"
        )

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Return the names whose values must equal those of an earlier run to resume it, and do not."""
        own, default = asdict(self), {field.name: field.default for field in fields(self)} | _LOOP
        found = [name for name in _OF_A_STEP if own[name] != other.get(name, default[name])]
        was_mixed = other["bfloat16"] if "bfloat16" in other else other.get("precision") == "mixed"  # the name in 0.1
        return found if bool(was_mixed) == (self.precision == "mixed") else [*found, "precision"]
