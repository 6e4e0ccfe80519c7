"""How much memory training takes, computed from the configuration before anything is loaded; and what a device has.

    static       weights ─ gradients (unless they are applied in backward) ─ optimizer state
    activations  what the forward pass keeps for the backward pass; with recomputation the input of each block only
    transient    the largest of: a chunk of the loss, one block's backward pass, the last gradient and its update

Importing it imports no torch. Tests compare the figures with what torch allocates.
"""

import ctypes
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanmo.config import ModelConfig
from hanmo.cores import available_memory, proc_bytes
from hanmo.errors import ConfigError, MemoryPlanError
from hanmo.training.activations import Account, adapters, shapes
from hanmo.training.args import AUTO, PRECISIONS, TrainArgs

if TYPE_CHECKING:
    import torch

_HEADROOM = 0.95  # of the memory is filled if possible; the rest is for fragmentation
_BLOCK = 1 << 18  # elements that AdaFactor updates at once on a CPU
_PARTS = ("weights", "gradients", "optimizer", "static", "activations", "transient", "needed", "peak")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training takes, above those of the interpreter and its libraries.

    choice: the arguments that were planned, those that memory depends on all set.
    transient: added to all others at the worst moment.   peak: maximum during a step without accumulation.
    """

    choice: TrainArgs
    weights: int
    gradients: int
    optimizer: int
    activations: int
    transient: int
    peak: int

    @property
    def static(self) -> int:
        """Bytes that depend on neither sequence nor batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def needed(self) -> int:
        """Bytes that must be available.

        More than `peak` with whole gradients, which grow while activations shrink: with accumulation both exist at
        once, and without it the freed memory is fragmented.
        """
        return max(self.peak, self.static + self.activations + self.transient)

    def as_dict(self) -> dict[str, Any]:
        """Return all values as JSON types."""
        return {"choice": self.choice.choices(), **{name: getattr(self, name) for name in _PARTS}}


def plan(config: ModelConfig, choice: TrainArgs) -> Memory:
    """Compute the memory of one training step.

    AUTO is taken as AdaFactor, float32, update in backward, recomputation and a sequence of 1,024.
    """
    choice = choice.filled(
        optimizer="adafactor-gpt2-ml", precision="float32", in_backward=True, recompute=True, sequence=1024
    )
    in_backward, cpu = choice.in_backward, choice.device == "cpu"
    trained = whole = dict(shapes(config))
    each = 2 if choice.precision == "bfloat16" else 4  # bytes of a weight, and of its gradient
    weights = sum(map(prod, whole.values())) * each
    if choice.lora is not None:
        trained, each = dict(adapters(whole, choice.lora)), 4
        weights += sum(map(prod, trained.values())) * each
    numbers = sum(map(prod, trained.values()))
    state = sum(_state(choice.optimizer, name, shape, each) for name, shape in trained.items())
    state += numbers * each if choice.average else 0

    def update(numbers: int) -> int:
        """Bytes of temporaries while a parameter of so many elements is updated."""
        if choice.uses_adafactor:
            return (3 if each == 4 else 5) * 4 * min(numbers, _BLOCK) if cpu else 0
        if choice.optimizer == "muon":
            return 10 * numbers
        return 3 * numbers * each if cpu else 0

    account = Account(config, choice)
    network, (scores_kept, scores), (block, updated) = account.network(), account.loss(), account.transient()
    casts = 0
    if choice.precision == "mixed":
        casts = 2 * sum(prod(shape) for name, shape in whole.items() if ".blocks." in name and len(shape) == 2)
    network += 0 if choice.recompute else casts
    kept = network + scores_kept
    inside = max((prod(shape) for name, shape in trained.items() if ".blocks." in name), default=0)
    token = prod(trained.get("token.weight", (0,)))
    # A tied embedding's gradient from the loss is held until the embedding adds its own; the sum of two gradients is a
    # third tensor, likewise over the chunks of the loss.
    tied = token * each if config.tied and config.output != "none" else 0
    head = tied or prod(trained.get("output.weight", (0,))) * each
    gradients = 0 if in_backward else numbers * each
    last = 2 * tied + (token * each + update(token) if in_backward else 0)
    end = gradients + max(block, last)
    if in_backward:
        block = max(block, updated + update(inside)) + inside * each
    in_loss = kept + max(scores + max(head, casts if choice.recompute else 0), 3 * head if account.chunked else 0)
    in_block = network + tied + block
    return Memory(
        choice=choice,
        weights=weights,
        gradients=gradients,
        optimizer=state,
        activations=kept,
        transient=max(in_loss, in_block) - kept,
        peak=weights + state + max(in_loss, in_block, end, gradients + max(update(inside), update(token))),
    )


def choose(config: ModelConfig, args: TrainArgs, available: int, *, first: str = "float32") -> Memory:
    """Plan the fastest way to train that fits into `available` bytes, or the smallest one if none does.

    Tried in this order: no recomputation, recomputation, then both with bfloat16 weights, which need AdaFactor's
    stochastic rounding, or with another optimizer in float32, which has no bfloat16 copies of the weights.
    first: the precision to try first, which the device computes fastest. What `args` sets stays as it is.
    """
    precisions = [args.precision]
    if args.precision == AUTO:
        precisions = list(dict.fromkeys([first, "bfloat16" if args.uses_adafactor else "float32"]))
    plans = [
        plan(config, replace(args, precision=precision, recompute=recompute))
        for precision in precisions
        for recompute in ((False, True) if args.recompute == AUTO else (args.recompute,))
    ]
    for limit in (_HEADROOM * available, available):
        for found in plans:
            if found.needed <= limit:
                return found
    return min(plans, key=lambda found: found.needed)


def table(config: ModelConfig, base: TrainArgs) -> list[Memory]:
    """Plan every way of training at the sequence, batch and device of `base`; the best ones come first."""
    switches = (False, True)
    return [
        plan(config, replace(base, optimizer=name, precision=precision, recompute=recompute, in_backward=in_backward))
        for name in ("adafactor-gpt2-ml", "adamw")
        for precision in PRECISIONS
        for recompute in switches
        for in_backward in switches
    ]


def largest_batch(config: ModelConfig, choice: TrainArgs, available: int) -> int:
    """Find the largest batch with which a choice fits; 0 if none does."""

    def fits(batch: int) -> bool:
        return plan(config, replace(choice, batch=batch)).needed <= available

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def return_freed_memory() -> None:
    """Make glibc return freed blocks of 1 MiB or more to the system; for training on a CPU.

    By default glibc raises the threshold to 32 MiB and its heap fragments: half a GiB at hidden_size 1,536 and 1,024
    tokens. No effect with another C library.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD of malloc.h


def refuse_unless_fits(memory: Memory, available: int) -> None:
    """Raise MemoryPlanError, with the figures and what to change, if a plan needs more than `available` bytes."""
    if memory.needed <= available:
        return
    choice = memory.choice
    changes = [
        *([] if choice.in_backward else ["apply gradients in the backward pass"]),
        *([] if choice.recompute else ["recompute blocks"]),
        *(["take AdaFactor"] if not choice.uses_adafactor else []),
        *([] if choice.precision == "bfloat16" else ["take bfloat16 weights"]),
        *(["train adapters only (LoRA)"] if choice.lora is None else []),
        "shorten the sequence",
        *(["make the batch smaller"] if choice.rows_at_once > 1 else []),
    ]
    raise MemoryPlanError(
        f"training needs {gib(memory.needed)} and {gib(available)} are there ({choice.describe()}): weights "
        f"{gib(memory.weights)}, gradients {gib(memory.gradients)}, optimizer {gib(memory.optimizer)}, activations "
        f"{gib(memory.activations)}, transient {gib(memory.transient)}; {', or '.join(changes)}"
    )


def parse_size(text: str) -> int:
    """Parse a memory size into bytes: "22GiB" (2^30 each), "22GB" or "22G" (10^9 each), or a plain number.

    Raises ConfigError for anything else, and for sizes below 1.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]]) if match else 0
    if size < 1:
        raise ConfigError(f"memory is {text!r}; expected a size such as 22GiB, 22GB or 24G")
    return size


def gib(size: int) -> str:
    """Format bytes as GiB with two decimals, or as MiB below 1 GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _state(optimizer: str, name: str, shape: tuple[int, ...], bytes_each: int) -> int:
    """Bytes of an optimizer's state for one parameter; torch's optimizers keep it in the parameter's precision."""
    if optimizer.startswith("adafactor"):
        factored = len(shape) == 2 and min(shape) >= (128 if optimizer.endswith("bert4keras") else 1)
        return 4 * (sum(shape) if factored else prod(shape))
    moments = 1 if optimizer == "muon" and len(shape) == 2 and ".blocks." in name else 2
    return moments * prod(shape) * bytes_each


def free_memory(device: "torch.device") -> int:
    """Return the bytes still free on the GPU, or for this process in the machine and its control group."""
    if device.type == "cuda":
        return int(_cuda().mem_get_info(device)[0])
    return available_memory()


def held_memory(device: "torch.device") -> int:
    """Return the bytes that this process holds now: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return int(_cuda().memory_allocated(device))
    return proc_bytes("/proc/self/status", "VmRSS") or peak_memory(device)


def peak_memory(device: "torch.device") -> int:
    """Return the most bytes that this process has held since `reset_peak`, or since its start."""
    if device.type == "cuda":
        return int(_cuda().max_memory_allocated(device))
    if found := proc_bytes("/proc/self/status", "VmHWM"):
        return found
    try:
        import resource
    except ImportError:  # Windows: the peak is not measured
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reset_peak(device: "torch.device") -> None:
    """Reset the peak; on a CPU only where Linux allows it."""
    if device.type == "cuda":
        _cuda().reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def _cuda() -> Any:
    import torch

    return torch.cuda
