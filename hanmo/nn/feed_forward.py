"""The feed-forward half of a block: out, activation, back; gated or not."""

from torch import Tensor, nn

from hanmo.config import StackConfig
from hanmo.nn.activation import activate
from hanmo.nn.linear import Linear


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
