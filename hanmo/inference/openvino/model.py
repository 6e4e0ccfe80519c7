"""A torch model whose encoder OpenVINO computes, so that heads and pipelines written for torch run on it.

Few tokens in int8 or int4 are computed by the fused step.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hanmo.errors import CheckpointError, ConfigError
from hanmo.inference.fused.quantized import QuantizedStack, open_stack
from hanmo.inference.fused.quantized_row import FusedRow
from hanmo.inference.openvino.engine import compile_graph, run_encoder
from hanmo.inference.openvino.graph import build_encoder
from hanmo.inference.openvino.weights import Weights
from hanmo.model import Model, Output

__all__ = ["OpenVinoModel"]

SHORT = 32
"""Number of tokens, of all rows, up to which the fused step is faster than OpenVINO."""


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
        self._threads = threads

    @cached_property
    def _fused(self) -> QuantizedStack | None:
        return open_stack(self._weights, self.config, self._threads)

    def forward(  # type: ignore[override]
        self, ids: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None, logits: str = "all"
    ) -> Output:
        """Run ids [b, n] on the CPU; arguments and result are those of `Model.forward`."""
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        if ids.numel() <= SHORT and real.any(1).all() and self._fused is not None:
            with torch.no_grad():
                return self.heads(self._fused_hidden(self._fused, ids, segments, real), logits=logits)
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

    def _fused_hidden(self, fused: QuantizedStack, ids: Tensor, segments: Tensor | None, real: Tensor) -> Tensor:
        """Run ids [b, n] by the fused step: hidden states [b, n, hidden_size], 0 for padding."""
        texts = [row[own].tolist() for row, own in zip(ids, real, strict=True)]
        work = [(FusedRow(self._stack), text, len(text)) for text in texts]
        hidden = torch.zeros(*ids.shape, self._stack.hidden_size)
        kinds = torch.zeros_like(ids) if segments is None else segments
        hidden[real] = torch.from_numpy(fused.step(work, segments=kinds[real].numpy()))
        return hidden
