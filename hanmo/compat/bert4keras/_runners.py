"""What computes a model with bert4keras's inputs, masks and outputs: torch, or the CPU engine in int8 and int4.

A runner has
    token_bytes: bytes of the keys and values of one token.
    stamp():     a number that changes with the weights.
    new(…):      an empty cache with room for `capacity` tokens of each row; its `cut(length)` drops later tokens.
    take(…):     keep these rows of a cache, in this order, with room for `capacity` tokens.
    run(…):      the outputs of the tokens from `start` on, where `kept` holds those before and takes up these;
                 last: of the last position alone, [rows, 1, …].
"""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from array_api_compat import array_namespace, device
from torch import Tensor

from hanmo.compat.bert4keras.configs import Settings
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, PromptError, Unsupported
from hanmo.inference.fused.float32 import fused_step
from hanmo.model import Model, Output
from hanmo.nn.activation import activate
from hanmo.nn.cache import Cache

Array = npt.NDArray[Any]

# Inputs with one number for each token of the stack that writes.
TOKENS = ("Input-Token", "Decoder-Input-Token", "Input-Segment", "Input-Position")
QUANTIZED = ("int8", "int4")


def outputs_of(config: ModelConfig, settings: Settings) -> list[tuple[str, str]]:
    """List a model's outputs as (kind, activation) in bert4keras's order; the last hidden state is the default.

    kind: "nsp", "pooled", "discriminator", "logits" or "hidden".
    """
    requested = {"nsp": settings.nsp}
    if settings.part != "encoder":
        requested["pooled"] = "linear" if config.pool != "none" and not settings.nsp else None
        requested["discriminator"] = settings.discriminator
        requested["logits"] = (settings.mlm or settings.lm) if config.output != "none" else None
    found = [(kind, activation) for kind, activation in requested.items() if activation is not None]
    found = found or [("hidden", "linear")]
    return found if settings.chosen is None else [found[i] for i in settings.chosen]


def stamp(network: Model) -> int:
    """Return a number that changes when a parameter is replaced or written to."""
    return hash(tuple((id(parameter), parameter._version) for parameter in network.parameters()))


def key_mask(ids: Any) -> Any:
    """Mask id 0 as a key, except at the first position; ids: [rows, tokens], an array or a tensor."""
    mask = ids != 0
    mask[:, 0] = True
    return mask


def new_tokens(inputs: dict[str, Any], shared_segments: bool, start: int = 0) -> dict[str, Any]:
    """Return the ids, mask, positions and segments, if there are any, of the tokens from `start` on."""
    ids = inputs["Input-Token" if "Input-Token" in inputs else "Decoder-Input-Token"]
    xp = array_namespace(ids)
    # Positions count every token, masked ones included.
    tokens = {
        "ids": ids,
        "mask": key_mask(ids),
        "positions": inputs.get("Input-Position", xp.arange(ids.shape[1], device=device(ids))[None]),
    }
    if "Input-Segment" in inputs:
        tokens["segments"] = inputs["Input-Segment"]
        if shared_segments:
            # Keras combines the masks of both look-ups in the shared embedding, so that segment 0 is masked too.
            tokens["mask"] &= key_mask(tokens["segments"])
    return {name: array[:, start:] for name, array in tokens.items()}


def _finish(x: Tensor, activation: str) -> Tensor:
    return x.softmax(-1) if activation == "softmax" else activate(x, activation)


def forward(
    network: Model,
    settings: Settings,
    inputs: dict[str, Tensor],
    *,
    start: int = 0,
    kept: Cache | None = None,
    last: bool = False,
) -> list[Tensor]:
    """Compute the outputs that `outputs_of` lists; for the arguments see the module."""
    dtype, outputs = network.token.weight.dtype, outputs_of(network.config, settings)
    condition = inputs[settings.condition].to(dtype) if settings.condition else None
    memory = source_mask = None
    if start == 0 and "Input-Context" in inputs:
        memory = inputs["Input-Context"].to(dtype)
    if start == 0 and "Encoder-Input-Token" in inputs:
        source = inputs["Encoder-Input-Token"]
        source_mask = key_mask(source)
        positions = torch.arange(source.shape[1], device=source.device)[None]
        memory = network.encode(source, mask=source_mask, positions=positions, condition=condition)
        if settings.part == "encoder":
            return [memory[:, -1:] if last else memory]
    output = network(
        **new_tokens(inputs, network.main.config.shared_segments, start),
        source_mask=source_mask,
        memory=memory,
        condition=condition,
        cache=kept,
        logits="none" if all(kind != "logits" for kind, _ in outputs) else "last" if last else "all",
    )
    if last:
        output.hidden = output.hidden[:, -1:]
    return finish(network.config, settings, output)


def finish(config: ModelConfig, settings: Settings, output: Output) -> list[Tensor]:
    """Return the outputs that `outputs_of` lists, with their activations."""
    output.hidden = output.hidden * config.logit_scale
    return [_finish(getattr(output, kind).float(), activation) for kind, activation in outputs_of(config, settings)]


class TorchRunner:
    """Runs a network with torch."""

    def __init__(self, network: Model, settings: Settings) -> None:
        self._network, self._settings = network, settings
        network.main.fused_step = fused_step
        stack = network.main.config
        sizes = stack.num_layers * stack.num_heads * (stack.key_dim + stack.head_dim)
        self.token_bytes = sizes * network.token.weight.element_size()

    def stamp(self) -> int:
        return stamp(self._network)

    def new(self, rows: int, capacity: int) -> Cache:
        return self._network.new_cache(rows=rows, capacity=capacity)

    def take(self, kept: Cache, rows: Array, capacity: int) -> None:
        index = torch.from_numpy(rows)
        both, kept.keys, kept.values = (kept.keys, kept.values), [], []  # of these only the filled part is copied
        kept.reorder(index)
        for tensors in both:
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_empty(len(rows), old.shape[1], capacity, old.shape[3])
                tensors[layer][:, :, : kept.length] = old[:, :, : kept.length][index]
        kept.keys, kept.values = both
        kept.capacity = capacity

    def run(
        self, inputs: dict[str, Array], *, start: int = 0, kept: Cache | None = None, last: bool = False
    ) -> list[Array]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        found = forward(self._network, self._settings, tensors, start=start, kept=kept, last=last)
        return [tensor.float().numpy() for tensor in found]


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

    The engine supports models with a causal or prefix mask and the vocabulary's scores as their only output.
    dtype: "int8" or "int4".   edited: whether keep_tokens or compound_tokens change the vocabulary.
    Raises MissingFile if there is no checkpoint.
    """
    outputs = outputs_of(config, settings)
    if config.is_encoder_decoder or settings.part != "model":
        reason = "the model has an encoder and a decoder"
    elif config.main.condition:
        reason = "its norms are conditional"
    elif config.main.mask == "full" or [kind for kind, _ in outputs] != ["logits"]:
        reason = "the model does not write"
    elif edited:
        reason = "keep_tokens or compound_tokens change its vocabulary"
    else:
        from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights

        message = f"hanmo: quantizing {checkpoint} to {dtype}, once; the result is kept ('hanmo cache' lists it)"
        announce = cache(lambda: logging.getLogger("hanmo").warning(message))  # at the first bytes that are read
        try:
            weights = open_weights(Path(checkpoint), weights=dtype, config=config, progress=lambda nbytes: announce())
            return QuantizedRunner(OpenVinoEngine(weights, threads=torch.get_num_threads()), dtype, outputs[0][1])
        except CheckpointError as error:  # bert4keras ignores tensors that it does not know
            reason = str(error)
    warn_unquantized(dtype, reason)
    return None


class QuantizedRunner:
    """Runs a model on the CPU engine.

    dtype: "int8" or "int4".   activation: of the output, such as "softmax".
    """

    def __init__(self, engine: Any, dtype: str, activation: str) -> None:
        self.dtype = dtype
        self.token_bytes: int = engine.token_bytes
        self._engine, self._activation, self._process = engine, activation, os.getpid()

    def stamp(self) -> int:
        return 0  # these weights cannot be changed

    def new(self, rows: int, capacity: int) -> Any:
        return self._engine.new_rows(rows)

    def take(self, kept: Any, rows: Array, capacity: int) -> None:
        kept.reorder(rows.tolist())

    def run(self, inputs: dict[str, Array], *, start: int = 0, kept: Any = None, last: bool = False) -> list[Array]:
        if os.getpid() != self._process:
            raise Unsupported(
                "a model in int8 or int4 cannot compute in a forked process; load it there, or leave out --weights"
            )
        stack, (rows, count) = self._engine.config.main, inputs["Input-Token"].shape
        if stack.context is not None and count > stack.context:
            raise PromptError(f"the text has {count} tokens; this model knows {stack.context} positions")
        tokens = new_tokens(inputs, stack.shared_segments, start)
        logits = (self.new(rows, count) if kept is None else kept).run(
            tokens["ids"],
            segment=tokens.get("segments", 0),
            positions=tokens["positions"],
            mask=None if tokens["mask"].all() else tokens["mask"],
            keep=1 if last else count - start,
        )
        return [_finish(torch.from_numpy(logits), self._activation).numpy()]


Runner = TorchRunner | QuantizedRunner
