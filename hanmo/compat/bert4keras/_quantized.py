"""Models in int8 or int4, computed by the CPU engine with bert4keras's inputs, masks and outputs.

The engine supports models with a causal or prefix mask and the vocabulary's scores as their only output. Other models
are computed by torch in the checkpoint's dtype, after one warning.
"""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hanmo.compat.bert4keras._forward import finish, key_mask, outputs_of
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, PromptError, Unsupported

Array = npt.NDArray[Any]

QUANTIZED = ("int8", "int4")


def warn_unquantized(dtype: str | None, reason: str) -> None:
    """Warn that a model does not compute in `dtype`; does nothing if that is no quantized one."""
    if dtype in QUANTIZED:
        logging.getLogger("hanmo").warning(
            f"hanmo: computing in the checkpoint's own dtype, not in {dtype}: {reason}; {dtype} is for GPT, GPT-2, "
            "GPT2_ML, and BERT and its variants with application='lm' or 'unilm'"
        )


def open_quantized(
    config: ModelConfig, settings: Settings, checkpoint: str, dtype: str, *, edited: bool
) -> "QuantizedRunner | None":
    """Open a checkpoint on the CPU engine, quantized the first time; warn and return None where that is unsupported.

    dtype: "int8" or "int4".   edited: whether keep_tokens or compound_tokens change the vocabulary.
    Raises MissingFile if there is no checkpoint.
    """
    reason = _unsupported(config, settings, edited=edited)
    if reason is None:
        from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights

        message = f"hanmo: quantizing {checkpoint} to {dtype}, once; the result is kept ('hanmo cache' lists it)"
        announce = cache(lambda: logging.getLogger("hanmo").warning(message))  # at the first bytes that are read
        try:
            weights = open_weights(Path(checkpoint), weights=dtype, config=config, progress=lambda nbytes: announce())
            engine = OpenVinoEngine(weights, threads=torch.get_num_threads())
            return QuantizedRunner(engine, dtype, outputs_of(config, settings)[0][1])
        except CheckpointError as error:  # bert4keras ignores tensors that it does not know
            reason = str(error)
    warn_unquantized(dtype, reason)
    return None


def _unsupported(config: ModelConfig, settings: Settings, *, edited: bool) -> str | None:
    if config.is_encoder_decoder or settings.part != "model":
        return "the model has an encoder and a decoder"
    if config.main.condition:
        return "its norms are conditional"
    if config.main.mask == "full" or [kind for kind, _ in outputs_of(config, settings)] != ["logits"]:
        return "the model does not write"
    return "keep_tokens or compound_tokens change its vocabulary" if edited else None


class QuantizedRunner:
    """Runs a model on the CPU engine; see `_prefix.Runner`.

    dtype: "int8" or "int4".   activation: of the output, such as "softmax".
    """

    def __init__(self, engine: Any, dtype: str, activation: str) -> None:
        self.dtype = dtype
        self.token_bytes: int = engine.token_bytes
        self._engine, self._activation = engine, activation
        self._process = os.getpid()

    def stamp(self) -> int:
        return 0  # these weights cannot be changed

    def new(self, rows: int, capacity: int) -> Any:
        return self._engine.new_rows(rows)

    def take(self, kept: Any, rows: Array | None, capacity: int) -> None:
        if rows is not None:
            kept.reorder(rows.tolist())

    def run(self, inputs: dict[str, Array], *, start: int = 0, kept: Any = None, last: bool = False) -> list[Array]:
        if os.getpid() != self._process:
            raise Unsupported(
                "a model in int8 or int4 cannot compute in a forked process; load it there, or leave out --weights"
            )
        stack = self._engine.config.main
        ids = inputs["Input-Token"]
        rows, count = ids.shape
        segments = inputs.get("Input-Segment", np.zeros((1, count), np.int64))
        positions = inputs.get("Input-Position", np.arange(count)[None])
        if stack.context is not None and count > stack.context:
            raise PromptError(f"the text has {count} tokens; this model knows {stack.context} positions")
        real = key_mask(ids)
        if stack.segments and stack.shared_segments and "Input-Segment" in inputs:
            real &= key_mask(segments)
        logits = (self.new(rows, count) if kept is None else kept).run(
            ids[:, start:],
            segment=segments[:, start:],
            positions=positions[:, start:],
            mask=None if real.all() else real[:, start:],
            keep=1 if last else count - start,
        )
        return [finish(torch.from_numpy(logits), self._activation).numpy()]
