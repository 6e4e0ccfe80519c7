"""Models in int8 or int4: the CPU engine computes what `predict` asks for, behind the same inputs, masks and outputs.

Knows which models that engine carries here: those that write by a causal or a prefix mask, with the scores of the
vocabulary as their only output. All others are computed by torch, in the checkpoint's dtype, which is said once each.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hanmo.compat.bert4keras._forward import finish, outputs_of
from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, PromptError, Unsupported

Array = npt.NDArray[Any]

ROUNDED = ("int8", "int4")


def note(kind: str, why: str) -> None:
    """Say that a model does not compute in int8 or int4, and why not."""
    logging.getLogger("hanmo").warning(
        f"hanmo: computing in the checkpoint's own dtype, not in {kind}: {why}; {kind} is for GPT, GPT-2, GPT2_ML, and "
        "BERT and its kin with application='lm' or 'unilm'"
    )


def open_rounded(
    config: ModelConfig, settings: Settings, checkpoint: str, kind: str, *, edited: bool
) -> "RoundedRunner | None":
    """Open a checkpoint on the CPU engine, its weights rounded the first time; None, said why, if it cannot carry it.

    kind: "int8" or "int4".   edited: whether the vocabulary is to be changed.
    Raises MissingFile if there is no checkpoint.
    """
    why = _hindrance(config, settings, edited=edited)
    if why is None:
        from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights

        try:
            weights = open_weights(Path(checkpoint), weights=kind, config=config, progress=_Once(checkpoint, kind))
            engine = OpenVinoEngine(weights, threads=torch.get_num_threads())
            return RoundedRunner(engine, kind, outputs_of(config, settings)[0][1])
        except CheckpointError as error:  # bert4keras passes over tensors that it does not know
            why = str(error)
    note(kind, why)
    return None


def _hindrance(config: ModelConfig, settings: Settings, *, edited: bool) -> str | None:
    if config.is_encoder_decoder or settings.part != "model":
        return "the model has an encoder and a decoder"
    if config.main.condition:
        return "its norms are conditional"
    if config.main.mask == "full" or [what for what, _ in outputs_of(config, settings)] != ["logits"]:
        return "the model does not write"
    return "keep_tokens or compound_tokens change its vocabulary" if edited else None


class _Once:
    """Says at the first bytes that are read that rounding takes its time."""

    def __init__(self, checkpoint: str, kind: str) -> None:
        self._message = f"hanmo: rounding {checkpoint} to {kind}, once; the result is kept ('hanmo cache' lists it)"

    def __call__(self, nbytes: int) -> None:
        if self._message:
            logging.getLogger("hanmo").warning(self._message)
            self._message = ""


class RoundedKept:
    """Rows of the engine; their room grows by itself."""

    capacity = sys.maxsize

    def __init__(self, rows: Any) -> None:
        self.engine_rows = rows

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.engine_rows.count)

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        self.engine_rows.cut(length)


class RoundedRunner:
    """Runs a model by the CPU engine; see `Runner`.

    kind: "int8" or "int4".   activation: of the output, such as "softmax".
    """

    def __init__(self, engine: Any, kind: str, activation: str) -> None:
        self.kind = kind
        self._engine, self._activation = engine, activation
        self._process = os.getpid()

    @property
    def token_bytes(self) -> int:
        """How many bytes the keys and values of one token take."""
        return int(self._engine.token_bytes)

    def stamp(self) -> int:
        """Give always the same: these weights cannot be changed."""
        return 0

    def new(self, rows: int, capacity: int) -> RoundedKept:
        """Make rows that hold nothing yet."""
        return RoundedKept(self._engine.new_rows(rows))

    def take(self, kept: RoundedKept, rows: Array | None, capacity: int) -> None:
        """Keep these rows in this order."""
        if rows is not None:
            kept.engine_rows.reorder(rows.tolist())

    def run(self, inputs: dict[str, Array], *, start: int = 0, kept: Any = None, last: bool = False) -> list[Array]:
        """Run the engine. Raises Unsupported in a forked process, PromptError, ConfigError."""
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
        if stack.segments and not stack.shared_segments:
            _check("Input-Segment", segments, stack.segments)
        if "Input-Position" in inputs and stack.context is not None:
            _check("Input-Position", positions, stack.context)
        real = _key_mask(ids)
        if stack.segments and stack.shared_segments and "Input-Segment" in inputs:
            real &= _key_mask(segments)
        kept = kept or self.new(rows, count)
        logits = kept.engine_rows.run(
            ids[:, start:],
            segment=segments[:, start:],
            positions=positions[:, start:],
            real=None if real.all() else real[:, start:],
            keep=1 if last else count - start,
        )
        return [finish(torch.from_numpy(logits), self._activation).numpy()]


def _check(name: str, values: Array, limit: int) -> None:
    if values.min() < 0 or values.max() >= limit:
        wrong = values.max() if values.min() >= 0 else values.min()
        raise ConfigError(f"{name} holds {wrong}; the model knows 0 … {limit - 1}")


def _key_mask(ids: Array) -> Array:
    """Mask id 0 as a key, but never at the first position: [b, n] bool; see `_forward.key_mask`."""
    mask: Array = ids != 0
    mask[:, 0] = True
    return mask
