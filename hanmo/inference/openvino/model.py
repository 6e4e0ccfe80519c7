"""A torch model whose encoder OpenVINO computes, so that heads and pipelines written for torch run on it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hanmo.errors import ConfigError
from hanmo.inference.openvino.engine import OpenVinoEncoder
from hanmo.inference.openvino.weights import Weights
from hanmo.model import Model, Output

__all__ = ["OpenVinoModel"]


class OpenVinoModel(Model):
    """An encoder that is computed on the CPU, without gradients; its parameters are those of `model`.

    weights: of the same checkpoint.   threads: None leaves it to OpenVINO.
    Raises ConfigError if the weights are of another network or of a UniLM, CheckpointError for one that is no encoder
    alone.
    """

    def __init__(self, model: Model, weights: Weights, *, threads: int | None = None) -> None:
        if weights.config != model.config:
            raise ConfigError(
                f"the model in memory is not built as {weights.source} says; save it, and open it from there"
            )
        if model.config.main.mask == "prefix":
            raise ConfigError(f"{weights.source} is a UniLM, whose answers OpenVINO does not compute here; use torch")
        self.__dict__.update(model.__dict__)
        self._runner = OpenVinoEncoder(weights, threads=threads)

    def forward(  # type: ignore[override]
        self, ids: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None, logits: str = "all"
    ) -> Output:
        """Run ids [b, n] on the CPU; arguments and result are those of `Model.forward`."""
        rows, count = ids.shape
        places: Any = ()
        if self.output is not None and logits != "none":
            places = np.arange(rows * count)
            places = places[count - 1 :: count] if logits == "last" else places
        found = self._runner.run(
            ids.numpy(),
            segments=None if segments is None else segments.numpy(),
            mask=None if mask is None else mask.numpy(),
            places=places,
        )
        outputs = {name: torch.from_numpy(found[name]) for name in found if name not in ("mask", "logits")}
        if len(places):
            outputs["logits"] = torch.from_numpy(found["logits"]).view(rows, -1, self.config.vocab_size)
        return Output(**outputs)
