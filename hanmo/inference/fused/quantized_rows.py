"""Steps of a single row past OpenVINO: the whole decoder as one compiled function over the mapped weights.

Knows which models and processors it suits, and one row's keys and values. quantized_step.py
computes. OpenVINO reads prompts and batches, and everything else that is not one token of one row.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from hanmo.config import ModelConfig
from hanmo.inference.fused.support import ACTIVATIONS, NORMS, kernels, most_threads, plain
from hanmo.inference.fused.thread_pool import run_step
from hanmo.inference.openvino.weights import Weights

__all__ = ["SingleRow", "Steps", "open_steps"]

Array = npt.NDArray[Any]

LEAST_BYTES = 64 << 20
"""Weights below that stay in the processor's cache, where OpenVINO is as fast, and compiling would take longer."""

MATRICES = ("attention.query_key_value", "attention.output", "feed_forward.input", "feed_forward.output")


def open_steps(weights: Weights, config: ModelConfig, threads: int | None) -> "Steps | None":
    """Prepare steps of single rows, or give None where model, weights or processor do not suit.

    threads: None takes one for each core that this process may use; no more are taken in any case.
    """
    if not suits(weights, config) or kernels("quantized") is None:
        return None
    return Steps(weights, config, min(threads or most_threads(), most_threads()))


def suits(weights: Weights, config: ModelConfig) -> bool:
    """Say whether a model is a plain decoder, large, and kept in int8 or int4 by groups of 128."""
    stack = config.main
    simple = (
        plain(stack)
        and not config.is_encoder_decoder
        and stack.mask == "causal"
        and stack.position == "learned"
        and not (stack.hierarchical or stack.position_offset or stack.segments)
        and stack.head_dim == stack.key_dim
        and stack.num_heads * stack.head_dim == stack.hidden_size == stack.embedding_size
        and config.output == "lm"
        and config.logit_scale == 1.0
    )
    whole = stack.hidden_size % 128 == stack.feed_forward % 128 == 0
    return simple and whole and weights.kind in ("int8", "int4") and weights.path.stat().st_size >= LEAST_BYTES


class Steps:
    """What all rows of a model share: addresses of its weights."""

    def __init__(self, weights: Weights, config: ModelConfig, threads: int) -> None:
        from hanmo.inference.fused import quantized_step

        self._kernel = quantized_step.step
        self.stack, self.threads = config.main, threads
        self._kept = weights  # whose pages the addresses point into
        self._weights: dict[str, Array] = {}
        side = "decoder" if config.decoder else "encoder"
        stack = self.stack
        self._layers = np.zeros((stack.num_layers, quantized_step.FIELDS), np.int64)
        for layer in range(stack.num_layers):
            block = f"{side}.blocks.{0 if stack.shared_layers else layer}"
            matrices = [field for name in MATRICES for field in self._matrix(f"{block}.{name}.weight")]
            norms = [self._address(f"{block}.{name}.{leaf}") for name in NORMS for leaf in ("weight", "bias")]
            self._layers[layer] = [*matrices, *norms]
        output = self._matrix("token.weight" if config.tied else "output.weight")
        output[3] = self._address("output.bias")
        last = [self._address(f"{side}.norm.{leaf}") if stack.final_norm else 0 for leaf in ("weight", "bias")]
        self._ends = np.array([*output, *last], np.int64)
        kind = ACTIVATIONS.index(stack.activation)
        self._sizes = (stack.num_heads, stack.head_dim, stack.feed_forward, kind)
        self._vocab = config.vocab_size
        self._table, self._scales = self._read("token.weight"), self._read("token.weight.scale")
        self._positions = self._read(f"{side}.embedding.position.weight")
        norm = (f"{side}.embedding.norm.{leaf}" for leaf in ("weight", "bias"))
        self._norm = [self._read(name) if name in weights else None for name in norm]

    def run(self, id: int, position: int, cache: Array, at: int) -> Array:
        """Read one id whose keys and values go to place `at` of cache [layer, 2, heads, room, size]: logits [vocab]."""
        stack = self.stack
        logits = np.empty(self._vocab, np.float32)
        shared = np.empty(2 * stack.hidden_size + max(3 * stack.hidden_size, stack.feed_forward), np.float32)
        x, scale, eps = self._embed(id, position), np.float32(stack.scale), np.float32(stack.norm_eps)
        how = (x, self._layers, self._ends, self._sizes, scale, eps, cache, at, shared, logits)
        run_step(self._kernel, self.threads, *how)
        return logits

    def _embed(self, id: int, position: int) -> Array:
        x = self._table[id].astype(np.float32) * self._scales[id] + self._positions[position]
        if self.stack.embedding_norm:
            x = x - x.mean()
            x /= np.sqrt(np.square(x).mean() + np.float32(self.stack.embedding_norm_eps))
            weight, bias = self._norm
            x = x if weight is None else x * weight
            x = x if bias is None else x + bias
        return np.ascontiguousarray(x, np.float32)

    def _read(self, name: str) -> Array:
        if name not in self._weights:
            self._weights[name] = self._kept.array(name)
        return self._weights[name]

    def _address(self, name: str) -> int:
        return self._read(name).ctypes.data if name in self._kept else 0

    def _matrix(self, name: str) -> list[int]:
        bits = 4 if self._read(name).dtype == np.uint8 else 8
        bias = f"{name.removesuffix('.weight')}.bias"
        return [bits, self._address(name), self._address(f"{name}.scale"), self._address(bias)]


class SingleRow:
    """One row's keys and values in bfloat16, and its next step."""

    def __init__(self, steps: Steps, states: dict[str, Array], length: int) -> None:
        """Take over the states of OpenVINO, "cache.DEPTH.key" and "cache.DEPTH.value": [1, heads, length, size].

        There need be none at length 0.
        """
        stack = steps.stack
        self._steps, self._length = steps, length
        self._cache = self._empty(length + 1)
        for layer in range(stack.num_layers if length else 0):
            for part, word in enumerate(("key", "value")):
                self._cache[layer, part, :, :length] = _narrow(states[f"cache.{layer}.{word}"][0])

    def step(self, id: int, position: int) -> Array:
        """Append an id: logits [vocab]."""
        if self._length == self._cache.shape[3]:
            old, self._cache = self._cache, self._empty(self._length + 1)
            self._cache[..., : self._length, :] = old
        logits = self._steps.run(id, position, self._cache, self._length)
        self._length += 1
        return logits

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        self._length = length

    def states(self, length: int) -> dict[str, Array]:
        """Give the first tokens' keys and values as OpenVINO takes them, float32."""
        return {
            f"cache.{layer}.{word}": _widen(self._cache[layer, part, None, :, :length])
            for layer in range(len(self._cache))
            for part, word in enumerate(("key", "value"))
        }

    def _empty(self, least: int) -> Array:
        """Make room for a quarter more than is needed: what is not used yet would count as memory."""
        stack = self._steps.stack
        room = min(max(least, stack.positions or least), 32 + least * 5 // 4)
        return np.empty((stack.num_layers, 2, stack.num_heads, room, stack.head_dim), np.uint16)


def _narrow(numbers: Array) -> Array:
    """float32 → bfloat16 as uint16, to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _widen(halves: Array) -> Array:
    return (halves.astype(np.uint32) << 16).view(np.float32)
