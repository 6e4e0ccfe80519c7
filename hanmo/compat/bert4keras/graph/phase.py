"""What runs now: Keras 2's backend functions and losses ask about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Phase:
    """The state of the process.

    training: the model runs a training step.   predicting: it runs in `predict`, where losses are not needed.
    model: the model whose step runs.   inner: whether a loss or a layer may take gradients in it.
    """

    def __init__(self) -> None:
        self.training = self.predicting = self.inner = False
        self.model: Any = None

    @contextmanager
    def __call__(self, **changes: Any) -> Iterator[None]:
        """Change attributes inside the block."""
        before = dict(vars(self))
        vars(self).update(changes)
        try:
            yield
        finally:
            vars(self).update(before)


phase = Phase()
