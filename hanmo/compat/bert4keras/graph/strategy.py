"""What scripts for bert4keras use of TensorFlow: the strategy for several devices, which is one device here."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OneDevice:
    """Stands for `tf.distribute.MirroredStrategy`: everything runs on one device."""

    num_replicas_in_sync = 1

    def __init__(self, *arguments: Any, **options: Any) -> None:
        logging.getLogger("hanmo").warning(
            "hanmo: MirroredStrategy runs on one device here; for many, train with `torchrun -m hanmo.cli finetune`"
        )

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Do nothing: variables are where they always are."""
        yield
