"""How much memory training takes, known before it starts: bytes by what they hold, from the configuration alone.

Knows the shape of every parameter, and which tensors Hanmo's networks, loss and optimizers keep, and for how long;
imports no torch. Tests hold the figures against what torch really keeps.

    static       weights ─ gradients (whole ones only) ─ state of the optimizer
    activations  what the forward pass leaves for the backward pass; with recomputation the input of each block only
    transient      the largest of: a chunk of the loss, one block's backward pass, the last gradient and its update
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError, MemoryPlanError
from hanmo.training.activations import OPTIMIZERS, PRECISIONS, Account, Choice

__all__ = [
    "OPTIMIZERS",
    "PRECISIONS",
    "Choice",
    "Memory",
    "adapters",
    "choose",
    "gib",
    "largest_batch",
    "parse_size",
    "plan",
    "refuse_unless_fits",
    "return_freed_memory",
    "shapes",
    "table",
]

_HEADROOM = 0.95  # of the memory is filled if possible; the rest is for fragmentation
_BLOCK = 1 << 18  # elements that AdaFactor updates at once on a CPU
_PARTS = ("weights", "gradients", "optimizer", "static", "activations", "transient", "needed", "peak")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a choice takes, above those of the interpreter and its libraries.

    transient: on top of all others at the worst moment.   peak: the most at any moment of a step without accumulation.
    """

    choice: Choice
    weights: int
    gradients: int
    optimizer: int
    activations: int
    transient: int
    peak: int

    @property
    def static(self) -> int:
        """Bytes that do not depend on sequence and batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def needed(self) -> int:
        """Bytes that must be there.

        More than `peak` where whole gradients grow while activations shrink: with accumulation both are there at
        once, and without it what is freed lies in pieces.
        """
        return max(self.peak, self.static + self.activations + self.transient)

    def as_dict(self) -> dict[str, Any]:
        """Give everything in the types that JSON has."""
        return {"choice": asdict(self.choice), **{name: getattr(self, name) for name in _PARTS}}


def plan(config: ModelConfig, choice: Choice) -> Memory:
    """Compute the memory of one training step from the configuration."""
    whole = dict(shapes(config))
    bytes_each = 2 if choice.precision == "bfloat16" else 4
    weights = sum(map(prod, whole.values())) * bytes_each
    trained = whole
    if choice.lora is not None:
        trained, bytes_each = dict(adapters(whole, choice.lora)), 4
        weights += sum(map(prod, trained.values())) * 4
    numbers = sum(map(prod, trained.values()))
    state = sum(_state(choice.optimizer, name, shape, bytes_each) for name, shape in trained.items())
    state += numbers * bytes_each if choice.average else 0
    account = Account(config, choice)
    scores_kept, scores = account.loss()
    network = account.network()
    casts = 0
    if choice.precision == "mixed":
        casts = 2 * sum(prod(shape) for name, shape in whole.items() if ".blocks." in name and len(shape) == 2)
    network += 0 if choice.recompute else casts
    kept = network + scores_kept
    inside = max((prod(shape) for name, shape in trained.items() if ".blocks." in name), default=0)
    token = prod(trained.get("token.weight", (0,)))
    # The gradient of a tied embedding is held from the loss on, until the embedding's own is added. Two gradients are
    # added into a third; the output's likewise over the chunks of the loss.
    tied = token * bytes_each if config.tied and config.output != "none" else 0
    head = tied or prod(trained.get("output.weight", (0,))) * bytes_each
    gradients = 0 if choice.in_backward else numbers * bytes_each
    steps = _update(choice, inside, bytes_each), _update(choice, token, bytes_each)
    one = inside * bytes_each if choice.in_backward else 0
    last = 2 * tied + (token * bytes_each if choice.in_backward else 0)
    block, updated = account.transient()
    if choice.in_backward:
        block = max(block, updated + steps[0]) + one
    moments = {
        "loss": kept + max(scores + max(head, casts if choice.recompute else 0), 3 * head if account.chunked else 0),
        "block": network + tied + block,
        "end": gradients + max(account.transient()[0], last + (steps[1] if choice.in_backward else 0)),
        "step": gradients + max(steps),
    }
    peak = weights + state + max(moments.values())
    transient = max(moments["loss"], moments["block"]) - kept
    return Memory(
        choice=choice,
        weights=weights,
        gradients=gradients,
        optimizer=state,
        activations=kept,
        transient=transient,
        peak=peak,
    )


def choose(
    config: ModelConfig,
    base: Choice,
    available: int,
    *,
    precision: str | None = None,
    recompute: bool | None = None,
) -> Memory:
    """Plan the fastest way to train that fits into `available` bytes, or the smallest one if none does.

    First without recomputation, then with it, then both with bfloat16 weights, which only AdaFactor rounds so that
    small updates count. base: all that is fixed, and the precision to try first.   precision, recompute: fix these too.
    """
    halves = ("bfloat16",) if base.optimizer.startswith("adafactor") and base.precision != "bfloat16" else ()
    plans = [
        plan(config, replace(base, precision=kind, recompute=again))
        for kind in ((precision,) if precision else (base.precision, *halves))
        for again in ((False, True) if recompute is None else (recompute,))
    ]
    for limit in (_HEADROOM * available, available):
        for found in plans:
            if found.needed <= limit:
                return found
    return min(plans, key=lambda found: found.needed)


def table(config: ModelConfig, base: Choice) -> list[Memory]:
    """Plan every way of training at the sequence, batch and device of `base`; the ones to take first stand first."""
    optimizers = ("adafactor-gpt2-ml", "adamw")
    switches = (False, True)
    return [
        plan(config, replace(base, optimizer=name, precision=precision, recompute=recompute, in_backward=in_backward))
        for name in optimizers
        for precision in PRECISIONS
        if precision != "mixed" or base.device != "cpu"
        for recompute in switches
        for in_backward in switches
    ]


def largest_batch(config: ModelConfig, choice: Choice, available: int) -> int:
    """Find the largest batch with which a choice fits; 0 if none does."""
    low, high = 0, 1
    while plan(config, replace(choice, batch=high)).needed <= available:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = plan(config, replace(choice, batch=middle)).needed <= available
        low, high = (middle, high) if fits else (low, middle)
    return low


def return_freed_memory() -> None:
    """Have the C library return blocks of a MiB or more to the system when they are freed; for training on a CPU.

    Without it glibc learns to keep blocks of up to 32 MiB in a heap that fragments, half a GiB of them at
    hidden_size 1,536 and 1,024 tokens. Does nothing where there is no glibc.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD of malloc.h


def refuse_unless_fits(memory: Memory, available: int) -> None:
    """Raise MemoryPlanError, with all numbers and what to change, if a plan needs more than `available` bytes."""
    if memory.needed <= available:
        return
    choice = memory.choice
    changes = [
        *([] if choice.in_backward else ["apply gradients in the backward pass"]),
        *([] if choice.recompute else ["recompute blocks"]),
        *(["take AdaFactor"] if not choice.optimizer.startswith("adafactor") else []),
        *([] if choice.precision == "bfloat16" else ["take bfloat16 weights"]),
        *(["train adapters only (LoRA)"] if choice.lora is None else []),
        "shorten the sequence",
        *(["make the batch smaller"] if choice.batch > 1 else []),
    ]
    raise MemoryPlanError(
        f"training needs {gib(memory.needed)} and {gib(available)} are there ({choice}): weights "
        f"{gib(memory.weights)}, gradients {gib(memory.gradients)}, optimizer {gib(memory.optimizer)}, activations "
        f"{gib(memory.activations)}, transient {gib(memory.transient)}; {', or '.join(changes)}"
    )


def parse_size(text: str) -> int:
    """Read a size of memory in bytes: "22GiB" (2^30 each), "22GB" or "22G" (10^9 each), or a plain number.

    Raises ConfigError for anything else, and for sizes below 1.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]]) if match else 0
    if size < 1:
        raise ConfigError(f"memory is {text!r}; expected a size such as 22GiB, 22GB or 24G")
    return size


def gib(size: int) -> str:
    """Write bytes as GiB, with two decimals, or as MiB below one of them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _state(optimizer: str, name: str, shape: tuple[int, ...], bytes_each: int) -> int:
    """Bytes that an optimizer remembers of one parameter; torch's keep them in the parameter's precision."""
    if optimizer.startswith("adafactor"):
        factored = len(shape) == 2 and min(shape) >= (128 if optimizer.endswith("bert4keras") else 1)
        return 4 * (sum(shape) if factored else prod(shape))
    moments = 1 if optimizer == "muon" and len(shape) == 2 and ".blocks." in name else 2
    return moments * prod(shape) * bytes_each


def _update(choice: Choice, numbers: int, bytes_each: int) -> int:
    """Bytes of the temporaries while one parameter of so many numbers is updated."""
    if choice.optimizer.startswith("adafactor"):
        return (3 if bytes_each == 4 else 5) * 4 * min(numbers, _BLOCK) if choice.device == "cpu" else 0
    if choice.optimizer == "muon":
        return 10 * numbers
    return 3 * numbers * bytes_each if choice.device == "cpu" else 0


def shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give every parameter of a model by name, in the shape that `hanmo.model.Model` gives it."""
    main = config.main
    yield "token.weight", (config.vocab_size, main.embedding_size)
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if stack is not None:
            yield from _stack(f"{side}.", stack)
    narrow = main.embedding_size
    if config.output == "mlm":
        yield from _linear("output.dense", main.hidden_size, narrow)
        yield from _norm("output.norm", main, narrow, plain=True)
        yield "output.bias", (config.vocab_size,)
    elif config.output == "lm" and narrow != main.hidden_size:
        yield from _linear("output.project", main.hidden_size, narrow, bias=main.bias)
    if config.output != "none" and not config.tied:
        yield "output.weight", (config.vocab_size, narrow)
    if config.pool != "none":
        yield from _linear("pooler.dense", main.hidden_size, main.hidden_size)
        if config.nsp:
            yield from _linear("pooler.nsp", main.hidden_size, 2)
    if config.discriminator:
        yield from _linear("discriminator.dense", main.hidden_size, main.hidden_size)
        yield from _linear("discriminator.output", main.hidden_size, 1)


def adapters(whole: dict[str, tuple[int, ...]], rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the two matrices that hanmo.training.lora puts beside every linear layer of the blocks."""
    for name, shape in whole.items():
        if ".blocks." in name and len(shape) == 2 and "condition" not in name and ".hidden." not in name:
            yield f"{name}.down", (rank, shape[1])
            yield f"{name}.up", (shape[0], rank)


def _stack(prefix: str, stack: StackConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden_size, narrow = stack.hidden_size, stack.embedding_size
    if stack.position == "learned":
        yield f"{prefix}embedding.position.weight", (stack.positions or 0, narrow)
    if stack.segments and not stack.shared_segments:
        yield f"{prefix}embedding.segment.weight", (stack.segments, narrow)
    if stack.embedding_norm:
        yield from _norm(f"{prefix}embedding.norm", stack, narrow)
    if narrow != hidden_size:
        yield from _linear(f"{prefix}embedding.project", narrow, hidden_size, bias=stack.bias)
    for layer in range(1 if stack.shared_layers else stack.num_layers):
        for sublayer in stack.order:
            name = f"{prefix}blocks.{layer}.{sublayer.kind}"
            for part, (inputs, outputs) in _linears(stack, sublayer.kind).items():
                yield from _linear(f"{name}.{part}", inputs, outputs, bias=stack.bias)
            for place in ("pre", "post"):
                if getattr(sublayer, place):
                    yield from _norm(f"{name}_{place}", stack, hidden_size)
    if stack.position == "buckets":
        yield f"{prefix}relative.weight", (stack.num_heads, stack.buckets)
    if stack.final_norm:
        yield from _norm(f"{prefix}norm", stack, hidden_size)


def _linears(stack: StackConfig, kind: str) -> dict[str, tuple[int, int]]:
    """Name the linear layers of a sub-layer: part → (inputs, outputs)."""
    hidden_size, inner = stack.hidden_size, stack.feed_forward
    if kind == "feed_forward":
        gate = {"gate": (hidden_size, inner)} if stack.gated else {}
        return {"input": (hidden_size, inner), **gate, "output": (inner, hidden_size)}
    keys, values = stack.num_heads * stack.key_dim, stack.num_heads * stack.head_dim
    return {
        "query": (hidden_size, keys),
        "key": (hidden_size, keys),
        "value": (hidden_size, values),
        "output": (values, hidden_size),
    }


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(
    name: str, stack: StackConfig, hidden_size: int, *, plain: bool = False
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """plain: a layer norm whatever the stack's own are."""
    scale, bias = plain or stack.norm_scale, plain or (stack.norm_bias and stack.norm == "layer")
    if scale:
        yield f"{name}.weight", (hidden_size,)
    if bias:
        yield f"{name}.bias", (hidden_size,)
    if stack.condition:
        features = stack.condition_hidden or stack.condition
        if stack.condition_hidden:
            yield f"{name}.hidden.weight", (stack.condition_hidden, stack.condition)
        if scale:
            yield f"{name}.condition_scale.weight", (hidden_size, features)
        if bias:
            yield f"{name}.condition_bias.weight", (hidden_size, features)
