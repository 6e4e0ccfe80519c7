"""What a forward pass keeps for the backward pass, in bytes: an account of Hanmo's networks, tensor by tensor.

Knows which tensors torch's operations keep (of a linear layer its input, of a norm its input and statistics …), on a
CPU and on a GPU. Knows no weights, gradients or optimizers; imports no torch. `tests/training/test_memory.py` holds it
against what `torch.autograd.graph.saved_tensors_hooks` sees.
"""

from dataclasses import dataclass

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError

__all__ = ["CHUNK_BYTES", "OPTIMIZERS", "PRECISIONS", "Account", "Choice"]

OPTIMIZERS = ("adamw", "muon", "adafactor-gpt2-ml", "adafactor-bert4keras")
PRECISIONS = ("float32", "mixed", "bfloat16")
CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}  # hanmo.training.loss's own, without its torch
# Tensors an activation leaves, its output included, which the next layer keeps in any case; two where not named.
_LEAVES = {"relu": 1, "tanh": 1, "sigmoid": 1, "linear": 1, "softsign": 3}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What decides how much memory a step takes.

    precision: "float32"; "mixed", float32 weights that compute in bfloat16; "bfloat16" weights.
    in_backward: each gradient is applied and freed at once.   recompute: blocks run again in the backward pass.
    sequence: tokens of a row, of source and target each where there are two.   batch: rows at once.
    average: a moving average of the weights is kept.   lora: rank of adapters on the blocks' linear layers; None
    trains all weights.   device: "cpu" or "cuda".
    Raises ConfigError for a value that there is not.
    """

    optimizer: str = "adafactor-gpt2-ml"
    precision: str = "float32"
    in_backward: bool = True
    recompute: bool = True
    sequence: int = 1024
    batch: int = 1
    average: bool = False
    lora: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS), ("device", tuple(CHUNK_BYTES))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        for name in ("sequence", "batch", "lora"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected 1 or more")

    def __str__(self) -> str:
        update = "update in backward" if self.in_backward else "whole gradients"
        again = "recomputation" if self.recompute else "no recomputation"
        lora = f", LoRA of rank {self.lora}" if self.lora else ""
        return (
            f"{self.optimizer}{lora}, {self.precision}, {update}, {again}, sequence {self.sequence:,}, "
            f"batch {self.batch:,}"
        )


class Account:
    """Bytes that a model's parts keep under a choice.

    A tensor that two operations keep is counted once, where the second is named; small tables are left out.
    """

    def __init__(self, config: ModelConfig, choice: Choice) -> None:
        self.config, self.choice = config, choice
        self.tokens = choice.batch * choice.sequence
        self.act = 4 if choice.precision == "float32" else 2  # bytes of what a matrix reads and gives
        self.stream = 2 if choice.precision == "bfloat16" else 4  # bytes of the sums between sub-layers
        self.rows = CHUNK_BYTES[choice.device] // (4 * config.vocab_size)  # that the loss scores at once
        self.chunked = self.tokens > self.rows
        self.mixed, self.cpu = choice.precision == "mixed", choice.device == "cpu"

    def network(self) -> int:
        """Bytes of embeddings, stacks and norms, up to the last hidden state."""
        total = 0
        for stack in (self.config.encoder, self.config.decoder):
            if stack is not None:
                each = self.boundary(stack) if self.choice.recompute else self.block(stack)
                total += self._embedding(stack) + stack.num_layers * each + self._shared(stack)
                total += self._norm(stack, stack.hidden_size) if stack.final_norm else 0
        if self.config.is_encoder_decoder:
            total += self.hidden(self.config.main)  # the encoder's output, which all blocks of the decoder read
        return total

    def boundary(self, stack: StackConfig) -> int:
        """Bytes of what goes from one block to the next."""
        scores = self._scores(stack) * self.act if stack.score_residual != "none" else 0
        return self.hidden(stack) + scores

    def hidden(self, stack: StackConfig) -> int:
        """Bytes of one hidden state of all tokens."""
        return self.tokens * stack.hidden_size * self.stream

    def block(self, stack: StackConfig) -> int:
        """Bytes that one block keeps, its input included."""
        total = 0
        for sublayer in stack.order:
            total += (sublayer.pre + sublayer.post) * self._norm(stack, stack.hidden_size)
            total += self._dropped(stack.dropout, stack.hidden_size, self.act)
            if sublayer.kind == "feed_forward":
                total += self._feed_forward(stack)
            else:
                total += self._attention(stack, cross=sublayer.kind == "cross")
        return total

    def transient(self) -> tuple[int, int]:
        """Bytes that one block's backward pass takes, the block itself included if it is run again.

        Returns the most of them, and those while its first matrix is updated, when what that has read is free again.
        """
        found = (0, 0)
        for stack in (self.config.encoder, self.config.decoder):
            if stack is None:
                continue
            again = self.block(stack) if self.choice.recompute else 0
            last = stack.order[-1]
            freed = last.post * self._norm(stack, stack.hidden_size) + self._dropped(
                stack.dropout, stack.hidden_size, self.act
            )
            inner = self.tokens * stack.feed_forward * self.act  # the gradient of what the activation gives
            through = 0 if self._fused(stack) else 2 * 4 * self._scores(stack) - self._feed_forward(stack)
            found = max(found, (again + max(inner - freed, through), again - freed))
        return found

    def loss(self) -> tuple[int, int]:
        """Bytes that the loss keeps, and what its backward pass takes on top of that while one chunk is scored."""
        config, stack = self.config, self.config.main
        rows = min(self.rows, self.tokens)
        scores = rows * config.vocab_size * 4
        narrow = stack.embedding_size
        head = 0
        if config.output == "mlm":
            head = rows * narrow * (self.act * 2 + self.stream)
        elif narrow != stack.hidden_size:
            head = rows * narrow * self.act
        casts = config.vocab_size * narrow * 2 if self.mixed else 0
        if self.chunked:
            return self.hidden(stack) + self.tokens * 8, 3 * scores + head + casts
        kept = self.tokens * stack.hidden_size * self.act + head + scores + self.tokens * 8
        return kept + casts, 2 * scores

    def _embedding(self, stack: StackConfig) -> int:
        width = stack.embedding_size
        total = self.tokens * 8 + (self._norm(stack, width) if stack.embedding_norm else 0)
        total += self._dropped(stack.dropout, width, self.stream)
        return total + (self._read(width, 1) if width != stack.hidden_size else 0)

    def _shared(self, stack: StackConfig) -> int:
        """Bytes of the tables of positions that all blocks read."""
        square = self.choice.sequence**2
        if stack.position == "relative":
            return square * 8
        if stack.position == "buckets":
            return square * (8 + 4 * stack.num_heads)
        return self.choice.sequence * stack.key_dim * 4 if stack.position == "rotary" else 0

    def _norm(self, stack: StackConfig, width: int) -> int:
        if stack.norm == "layer":
            return self.tokens * (width * self.stream * (2 if stack.condition else 1) + 8)
        if not self.cpu:
            return self.tokens * (width * self.stream + 4)
        return self.tokens * (width * 4 * (2 if stack.norm_scale else 1) + 4)

    def _read(self, width: int, layers: int) -> int:
        """Bytes that linear layers keep of the input they share; autocast converts it for each of them."""
        adapted = self.mixed and self.choice.lora is not None
        return self.tokens * width * self.act * (layers * (2 if adapted else 1) if self.mixed else 1)

    def _dropped(self, rate: float, width: int, each: int) -> int:
        # A CPU keeps what dropout multiplies by as numbers, a GPU as a mask.
        return self.tokens * width * (each if self.cpu else 1) if rate else 0

    def _feed_forward(self, stack: StackConfig) -> int:
        leaves = _LEAVES.get(stack.activation, 2) + (2 if stack.gated else 0)
        inner = self.tokens * stack.feed_forward * self.act * leaves
        if self.mixed and self.choice.lora is not None:
            inner += self.tokens * stack.feed_forward * self.act
        return inner + self._read(stack.hidden_size, 2 if stack.gated else 1) + self._adapters(3 if stack.gated else 2)

    def _adapters(self, layers: int) -> int:
        return self.tokens * layers * (self.choice.lora or 0) * self.act

    def _scores(self, stack: StackConfig) -> int:
        return self.choice.batch * stack.num_heads * self.choice.sequence**2

    def _biased(self, stack: StackConfig, *, cross: bool) -> bool:
        return stack.position == "buckets" and (not cross or stack.cross_positions)

    def _fused(self, stack: StackConfig, *, cross: bool = False) -> bool:
        """Tell whether attention runs without keeping its scores; a CPU's kernel knows no dropout and no bias."""
        if stack.score_residual != "none" or (stack.position == "relative" and not cross):
            return False
        return not self.cpu or not (self._biased(stack, cross=cross) or stack.attention_dropout)

    def _attention(self, stack: StackConfig, *, cross: bool) -> int:
        keys, values = stack.num_heads * stack.key_dim, stack.num_heads * stack.head_dim
        read = self._read(stack.hidden_size, 1 if cross else 3) + self._adapters(4)
        if cross and self.mixed:
            read += self._read(stack.hidden_size, 2)
        scores, pairs = self._scores(stack), self.choice.batch * self.choice.sequence**2
        given = self.tokens * values * self.act  # the output layer's input
        relative = stack.position == "relative" and not cross
        dropped = stack.attention_dropout > 0
        if stack.score_residual != "none" or relative:
            weights = scores * self.act * (3 if dropped else 1)
            if relative:
                weights += self.tokens * stack.num_heads * (2 * stack.relative_clip + 1) * self.act
            mask = pairs if stack.mask != "full" and not cross else 0
            return read + self.tokens * (2 * keys + values) * self.act + given + weights + mask
        biased = self._biased(stack, cross=cross)
        if not self._fused(stack, cross=cross):
            mask = pairs if biased and stack.mask != "full" and not cross else 0
            return read + self.tokens * (2 * keys + values) * 4 + given + scores * 4 * (3 if dropped else 1) + mask
        masked = (stack.mask == "prefix" and not cross) or biased
        mask = pairs * (stack.num_heads if biased else 1) * self.act if masked else 0
        return read + self.tokens * ((2 * keys + values) * self.act + 4 * stack.num_heads) + given + mask
