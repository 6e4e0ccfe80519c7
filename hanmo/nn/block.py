"""A block: its sub-layers in order, each `x = post(x + f(pre(x)))`, and the feed-forward one.

GPT2_ML   x ─ attention ─(+)─ pre ─ feed_forward ─(+)─ post ─►
BERT      x ─ attention ─(+)─ post ─ feed_forward ─(+)─ post ─►
GPT-2     x ─ pre ─ attention ─(+)─ pre ─ feed_forward ─(+)─►      (the sums add x before its norm)
"""

from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.config import StackConfig
from hanmo.nn.activation import activate
from hanmo.nn.attention import Attention, AttentionInputs
from hanmo.nn.cache import Cache
from hanmo.nn.linear import Linear
from hanmo.nn.norm import Norm


class FeedForward(nn.Module):
    """`output(act(input(x)))`, or gated `output(act(gate(x)) * input(x))` (GLU variants, arXiv 2002.05202)."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.activation = stack.activation
        self.input = Linear(stack.hidden_size, stack.feed_forward, bias=stack.bias)
        self.gate = Linear(stack.hidden_size, stack.feed_forward, bias=stack.bias) if stack.gated else None
        self.output = Linear(stack.feed_forward, stack.hidden_size, bias=stack.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden_size]; returns the same shape."""
        if self.gate is None:
            return self.output(activate(self.input(x), self.activation))
        return self.output(activate(self.gate(x), self.activation) * self.input(x))


class Block(nn.Module):
    """The sub-layers of `StackConfig.order`; a sub-layer `s` has its norms in `s_pre` and `s_post`."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.order, self.dropout = stack.order, stack.dropout
        for sublayer in stack.order:
            layer = FeedForward(stack) if sublayer.kind == "feed_forward" else Attention(stack)
            self.add_module(sublayer.kind, layer)
            if sublayer.pre:
                self.add_module(f"{sublayer.kind}_pre", Norm(stack))
            if sublayer.post:
                self.add_module(f"{sublayer.kind}_post", Norm(stack))

    def forward(
        self,
        x: Tensor,
        inputs: dict[str, AttentionInputs],
        *,
        memory: Tensor | None = None,
        condition: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        scores: dict[str, Tensor | None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """x: [b, n, hidden_size].   inputs, scores: by kind of sub-layer.   Returns (x, scores for the next block)."""
        kept: dict[str, Tensor | None] = {}
        for sublayer in self.order:
            kind = sublayer.kind
            h = getattr(self, f"{kind}_pre")(x, condition) if sublayer.pre else x
            module = getattr(self, kind)
            if kind == "feed_forward":
                h = module(h)
            else:
                h, kept[kind] = module(
                    h,
                    inputs[kind],
                    memory=memory,
                    cross=kind == "cross",
                    cache=cache,
                    layer=layer,
                    scores=scores and scores.get(kind),
                )
            x = x + F.dropout(h, self.dropout, self.training)
            if sublayer.post:
                x = getattr(self, f"{kind}_post")(x, condition)
        return x, kept
