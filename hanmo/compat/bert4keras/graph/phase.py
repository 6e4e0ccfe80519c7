"""Whether a model trains, predicts, or neither: what Keras 2's backend functions and losses ask about."""

from collections.abc import Iterator
from contextlib import contextmanager


class Phase:
    """training: the model runs a training step.   predicting: it runs in `predict`, where losses are not needed."""

    def __init__(self) -> None:
        self.training = self.predicting = False

    @contextmanager
    def __call__(self, **changes: bool) -> Iterator[None]:
        """Change attributes inside the block."""
        before = dict(vars(self))
        vars(self).update(changes)
        try:
            yield
        finally:
            vars(self).update(before)


phase = Phase()
