"""A torch model whose encoder OpenVINO computes, so that heads and pipelines written for torch run on it."""

import numpy as np
import torch
from torch import Tensor

from hanmo.errors import CheckpointError, ConfigError
from hanmo.inference.openvino.engine import compile_graph, run_encoder
from hanmo.inference.openvino.graph import build_encoder
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
        if model.config.encoder is None or model.config.decoder is not None:
            raise CheckpointError(
                f"a {model.config.family} is no encoder alone; open it with hanmo.open_writer to write"
            )
        self.__dict__.update(model.__dict__)
        self._stack = model.config.encoder
        self._weights = weights  # the graph shares its pages
        self._compiled = compile_graph(build_encoder(weights, model.config), weights.kind, threads)

    def forward(  # type: ignore[override]
        self, ids: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None, logits: str = "all"
    ) -> Output:
        """Run ids [b, n] on the CPU; arguments and result are those of `Model.forward`."""
        rows, count = ids.shape
        places = np.arange(rows * count, dtype=np.int32)
        if logits == "last":
            places = places[count - 1 :: count]
        # At least one place: a product with an empty matrix is not defined on all processors.
        inputs = {"places": places[:1] if logits == "none" else places} if self.output is not None else {}
        found = run_encoder(
            self._compiled,
            self._stack,
            ids.numpy(),
            None if mask is None else mask.numpy(),
            segments=None if segments is None else segments.numpy(),
            **inputs,
        )
        outputs = {name: torch.from_numpy(found[name]) for name in found}
        if "logits" in outputs:
            scored = outputs.pop("logits")
            if logits != "none":
                outputs["logits"] = scored.view(rows, -1, self.config.vocab_size)
        return Output(**outputs)
