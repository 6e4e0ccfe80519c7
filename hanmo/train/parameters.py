"""Every parameter of a model by name and shape, from its configuration alone.

Knows what `hanmo.model.Model` is made of, without making it and without torch; a test compares the two.
"""

from collections.abc import Iterator

from hanmo.config import ModelConfig, StackConfig

__all__ = ["adapters", "shapes"]


def shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give every parameter of a model by name, in the shape that `hanmo.model.Model` gives it."""
    main = config.main
    yield "token.weight", (config.vocab, main.embedding_width)
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if stack is not None:
            yield from _stack(f"{side}.", stack)
    narrow = main.embedding_width
    if config.output == "mlm":
        yield from _linear("output.dense", main.width, narrow)
        yield from _norm("output.norm", main, narrow, plain=True)
        yield "output.bias", (config.vocab,)
    elif config.output == "lm" and narrow != main.width:
        yield from _linear("output.project", main.width, narrow, bias=main.bias)
    if config.output != "none" and not config.tied:
        yield "output.weight", (config.vocab, narrow)
    if config.pool != "none":
        yield from _linear("pooler.dense", main.width, main.width)
        if config.nsp:
            yield from _linear("pooler.nsp", main.width, 2)
    if config.discriminator:
        yield from _linear("discriminator.dense", main.width, main.width)
        yield from _linear("discriminator.output", main.width, 1)


def adapters(whole: dict[str, tuple[int, ...]], rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the two matrices that hanmo.train.lora puts beside every linear layer of the blocks."""
    for name, shape in whole.items():
        if ".blocks." in name and len(shape) == 2 and "condition" not in name and ".hidden." not in name:
            yield f"{name}.down", (rank, shape[1])
            yield f"{name}.up", (shape[0], rank)


def _stack(prefix: str, stack: StackConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, narrow = stack.width, stack.embedding_width
    if stack.position == "learned":
        yield f"{prefix}embedding.position.weight", (stack.positions or 0, narrow)
    if stack.segments and not stack.shared_segments:
        yield f"{prefix}embedding.segment.weight", (stack.segments, narrow)
    if stack.embedding_norm:
        yield from _norm(f"{prefix}embedding.norm", stack, narrow)
    if narrow != width:
        yield from _linear(f"{prefix}embedding.project", narrow, width, bias=stack.bias)
    for depth in range(1 if stack.shared_layers else stack.depth):
        for sublayer in stack.order:
            name = f"{prefix}blocks.{depth}.{sublayer.kind}"
            for part, (inputs, outputs) in _linears(stack, sublayer.kind).items():
                yield from _linear(f"{name}.{part}", inputs, outputs, bias=stack.bias)
            for place in ("pre", "post"):
                if getattr(sublayer, place):
                    yield from _norm(f"{name}_{place}", stack, width)
    if stack.position == "buckets":
        yield f"{prefix}relative.weight", (stack.heads, stack.buckets)
    if stack.final_norm:
        yield from _norm(f"{prefix}norm", stack, width)


def _linears(stack: StackConfig, kind: str) -> dict[str, tuple[int, int]]:
    """Name the linear layers of a sub-layer: part → (inputs, outputs)."""
    width, inner = stack.width, stack.feed_forward
    if kind == "feed_forward":
        gate = {"gate": (width, inner)} if stack.gated else {}
        return {"input": (width, inner), **gate, "output": (inner, width)}
    keys, values = stack.heads * stack.key_dim, stack.heads * stack.head_dim
    return {"query": (width, keys), "key": (width, keys), "value": (width, values), "output": (values, width)}


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, stack: StackConfig, width: int, *, plain: bool = False) -> Iterator[tuple[str, tuple[int, ...]]]:
    """plain: a layer norm whatever the stack's own are."""
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
