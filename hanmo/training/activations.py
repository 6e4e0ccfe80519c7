"""What a training step keeps in memory, in bytes: an account of Hanmo's networks, tensor by tensor.

Knows the shape of every parameter, and which tensors torch's operations keep for the backward pass (of a linear layer
its input, of a norm its input and statistics), on a CPU and on a GPU. Knows no gradients and no optimizers; imports no
torch. `tests/training/test_memory.py` compares it with `torch.autograd.graph.saved_tensors_hooks`.
"""

from collections.abc import Iterator

from hanmo.config import ModelConfig, StackConfig
from hanmo.cores import SHORT_ATTENTION
from hanmo.training.args import TrainArgs

Shapes = Iterator[tuple[str, tuple[int, ...]]]

# Float32 scores that the loss holds at once; on a GPU one product over all tokens is fastest.
CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
# Tensors that an activation function keeps, its output included, which the next layer keeps anyway; else two.
_LEAVES = {"relu": 1, "tanh": 1, "sigmoid": 1, "linear": 1, "softsign": 3}


class Account:
    """Bytes that a model's parts keep for the backward pass.

    A tensor that two operations keep is counted once, at the second of them; small tables are left out.
    """

    def __init__(self, config: ModelConfig, choice: TrainArgs) -> None:
        self.config, self.choice = config, choice
        self.stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
        self.batch, self.square = choice.rows_at_once, choice.sequence**2
        self.tokens = self.batch * choice.sequence
        self.act = 4 if choice.precision == "float32" else 2  # bytes an element, of inputs and outputs of linear layers
        self.stream = 2 if choice.precision == "bfloat16" else 4  # and of the residual stream
        self.rows = CHUNK_BYTES[choice.device] // (4 * config.vocab_size)  # of logits that the loss computes at once
        self.chunked = self.tokens > self.rows
        self.mixed, self.cpu = choice.precision == "mixed", choice.device == "cpu"
        self.adapted = self.mixed and choice.lora is not None  # adapters convert their input once more

    def network(self) -> int:
        """Bytes of embeddings, stacks and norms, up to the last hidden state."""
        total = 0
        for stack in self.stacks:
            width = stack.embedding_size
            total += self.tokens * 8 + self._dropped(stack, width, self.stream)
            total += self._norm(stack, width) if stack.embedding_norm else 0
            total += self._read(width, 1) if width != stack.hidden_size else 0
            # The position tables, which all blocks share.
            total += {
                "relative": self.square * 8,
                "buckets": self.square * (8 + 4 * stack.num_heads),
                "rotary": self.choice.sequence * stack.key_dim * 4,
            }.get(stack.position, 0)
            if self.choice.recompute:  # what passes from one block to the next
                scores = self._scores(stack) * self.act if stack.score_residual != "none" else 0
                total += stack.num_layers * (self._hidden(stack) + scores)
            else:
                total += stack.num_layers * self._block(stack)
            total += self._norm(stack, stack.hidden_size) if stack.final_norm else 0
        # The encoder's output is read by all blocks of the decoder.
        return total + (self._hidden(self.config.main) if self.config.is_encoder_decoder else 0)

    def transient(self) -> tuple[int, int]:
        """Bytes that one block's backward pass adds, with the block's activations if they are recomputed.

        Returns the maximum, and the bytes left when the block's first matrix is updated.
        """
        found = (0, 0)
        for stack in self.stacks:
            again = self._block(stack) if self.choice.recompute else 0
            freed = stack.order[-1].post * self._norm(stack, stack.hidden_size)
            freed += self._dropped(stack, stack.hidden_size, self.act)
            inner = self.tokens * stack.feed_forward * self.act  # gradient of the activation's output
            fused = self._fused(stack, cross=False)
            through = 0 if fused else 2 * 4 * self._scores(stack) - self._feed_forward(stack)
            found = max(found, (again + max(inner - freed, through), again - freed))
        return found

    def loss(self) -> tuple[int, int]:
        """Bytes that the loss keeps, and bytes that its backward pass adds while one chunk is computed."""
        config, stack = self.config, self.config.main
        rows, narrow = min(self.rows, self.tokens), stack.embedding_size
        scores = rows * config.vocab_size * 4
        head = 0
        if config.output == "mlm":
            head = rows * narrow * (self.act * 2 + self.stream)
        elif narrow != stack.hidden_size:
            head = rows * narrow * self.act
        casts = config.vocab_size * narrow * 2 if self.mixed else 0
        if self.chunked:
            return self._hidden(stack) + self.tokens * 8, 3 * scores + head + casts
        return self.tokens * stack.hidden_size * self.act + head + scores + self.tokens * 8 + casts, 2 * scores

    def _hidden(self, stack: StackConfig) -> int:
        """Bytes of one hidden state of all tokens."""
        return self.tokens * stack.hidden_size * self.stream

    def _block(self, stack: StackConfig) -> int:
        """Bytes that one block keeps, its input included."""
        total = 0
        for sublayer in stack.order:
            total += (sublayer.pre + sublayer.post) * self._norm(stack, stack.hidden_size)
            total += self._dropped(stack, stack.hidden_size, self.act)
            if sublayer.kind == "feed_forward":
                total += self._feed_forward(stack)
            else:
                total += self._attention(stack, cross=sublayer.kind == "cross")
        return total

    def _norm(self, stack: StackConfig, width: int) -> int:
        if stack.norm == "layer":
            return self.tokens * (width * self.stream * (2 if stack.condition else 1) + 8)
        if not self.cpu:
            return self.tokens * (width * self.stream + 4)
        return self.tokens * (width * 4 * (2 if stack.norm_scale else 1) + 4)

    def _read(self, width: int, layers: int) -> int:
        """Bytes that linear layers keep of a shared input; autocast converts it once a layer."""
        return self.tokens * width * self.act * (layers * (1 + self.adapted) if self.mixed else 1)

    def _dropped(self, stack: StackConfig, width: int, each: int) -> int:
        # The CPU kernel keeps a tensor of factors, the GPU kernel a mask.
        return self.tokens * width * (each if self.cpu else 1) if stack.dropout else 0

    def _feed_forward(self, stack: StackConfig) -> int:
        leaves = _LEAVES.get(stack.activation, 2) + (2 if stack.gated else 0) + self.adapted
        inner = self.tokens * stack.feed_forward * self.act * leaves
        return inner + self._read(stack.hidden_size, 1 + stack.gated) + self._adapters(2 + stack.gated)

    def _adapters(self, layers: int) -> int:
        return self.tokens * layers * (self.choice.lora or 0) * self.act

    def _scores(self, stack: StackConfig) -> int:
        return self.batch * stack.num_heads * self.square

    def _biased(self, stack: StackConfig, *, cross: bool) -> bool:
        return stack.position == "buckets" and (not cross or stack.cross_positions)

    def _fused(self, stack: StackConfig, *, cross: bool) -> bool:
        """Whether attention keeps no scores; the CPU kernel supports neither dropout nor a bias."""
        if stack.score_residual != "none" or (stack.position == "relative" and not cross):
            return False
        return not self.cpu or not (self._biased(stack, cross=cross) or stack.attention_dropout)

    def _attention(self, stack: StackConfig, *, cross: bool) -> int:
        keys, values = stack.num_heads * stack.key_dim, stack.num_heads * stack.head_dim
        read = self._read(stack.hidden_size, 1 if cross else 3) + self._adapters(4)
        read += self._read(stack.hidden_size, 2) if cross and self.mixed else 0
        read += self.tokens * values * self.act  # the output layer's input
        scores, pairs = self._scores(stack), self.batch * self.square
        if self._fused(stack, cross=cross):
            biased = self._biased(stack, cross=cross)
            masked = (stack.mask == "prefix" and not cross) or biased
            converted = self.cpu and self.act == 2 and self.choice.sequence <= SHORT_ATTENTION  # to float32 and back
            act, result = (4, values) if converted else (self.act, 0)
            mask = pairs * (stack.num_heads if biased else 1) * act if masked else 0
            return read + self.tokens * ((2 * keys + values + result) * act + 4 * stack.num_heads) + mask
        each = scores * (3 if stack.attention_dropout else 1)
        mask = pairs if stack.mask != "full" and not cross else 0
        relative = stack.position == "relative" and not cross
        if stack.score_residual == "none" and not relative:
            mask = mask if self._biased(stack, cross=cross) else 0
            return read + self.tokens * (2 * keys + values) * 4 + each * 4 + mask
        if relative:
            each += self.tokens * stack.num_heads * (2 * stack.relative_clip + 1)
        return read + (self.tokens * (2 * keys + values) + each) * self.act + mask


def shapes(config: ModelConfig) -> Shapes:
    """Yield name and shape of every parameter of `hanmo.model.Model`."""
    main, narrow = config.main, config.main.embedding_size
    yield "token.weight", (config.vocab_size, narrow)
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if stack is not None:
            yield from _stack(f"{side}.", stack)
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


def adapters(whole: dict[str, tuple[int, ...]], rank: int) -> Shapes:
    """Yield the two matrices that hanmo.training.lora adds to every linear layer of the blocks."""
    for name, shape in whole.items():
        if ".blocks." in name and len(shape) == 2 and "condition" not in name and ".hidden." not in name:
            yield f"{name}.down", (rank, shape[1])
            yield f"{name}.up", (shape[0], rank)


def _stack(prefix: str, stack: StackConfig) -> Shapes:
    hidden, narrow, inner = stack.hidden_size, stack.embedding_size, stack.feed_forward
    keys, values = stack.num_heads * stack.key_dim, stack.num_heads * stack.head_dim
    attention = {"query": (hidden, keys), "key": (hidden, keys), "value": (hidden, values), "output": (values, hidden)}
    gate = {"gate": (hidden, inner)} if stack.gated else {}
    feed_forward = {"input": (hidden, inner), **gate, "output": (inner, hidden)}
    if stack.position == "learned":
        yield f"{prefix}embedding.position.weight", (stack.positions or 0, narrow)
    if stack.segments and not stack.shared_segments:
        yield f"{prefix}embedding.segment.weight", (stack.segments, narrow)
    if stack.embedding_norm:
        yield from _norm(f"{prefix}embedding.norm", stack, narrow)
    if narrow != hidden:
        yield from _linear(f"{prefix}embedding.project", narrow, hidden, bias=stack.bias)
    for layer in range(1 if stack.shared_layers else stack.num_layers):
        for sublayer in stack.order:
            name = f"{prefix}blocks.{layer}.{sublayer.kind}"
            for part, sizes in (feed_forward if sublayer.kind == "feed_forward" else attention).items():
                yield from _linear(f"{name}.{part}", *sizes, bias=stack.bias)
            for place in ("pre", "post"):
                if getattr(sublayer, place):
                    yield from _norm(f"{name}_{place}", stack, hidden)
    if stack.position == "buckets":
        yield f"{prefix}relative.weight", (stack.num_heads, stack.buckets)
    if stack.final_norm:
        yield from _norm(f"{prefix}norm", stack, hidden)


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, stack: StackConfig, width: int, *, plain: bool = False) -> Shapes:
    """plain: a layer norm, whatever norms the stack has."""
    scale, bias = plain or stack.norm_scale, plain or (stack.norm_bias and stack.norm == "layer")
    if scale:
        yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)
    if stack.condition:
        features = stack.condition_hidden or stack.condition
        if stack.condition_hidden:
            yield f"{name}.hidden.weight", (stack.condition_hidden, stack.condition)
        if scale:
            yield f"{name}.condition_scale.weight", (width, features)
        if bias:
            yield f"{name}.condition_bias.weight", (width, features)
