"""The fused decode step over int8 or int4 weights: one token of one row through the whole decoder, without OpenVINO.

Knows which models have it, and one row's keys and values. quantized_kernel.py computes.
"""

from functools import cache

import numpy as np

from hanmo.checkpoint.source import Array
from hanmo.config import ModelConfig
from hanmo.inference.fused.support import ACTIVATIONS, NORMS, has_fused_step, kernels, most_threads
from hanmo.inference.fused.thread_pool import run_step
from hanmo.inference.openvino.weights import Weights

__all__ = ["FusedRow", "QuantizedDecoder", "open_decoder"]

LEAST_BYTES = 64 << 20
"""Smaller weights fit the processor's cache, where OpenVINO is as fast and compiling takes longer."""

WORDS = "key", "value"
MATRICES = ("attention.query_key_value", "attention.output", "feed_forward.input", "feed_forward.output")


def open_decoder(weights: Weights, config: ModelConfig, threads: int | None) -> "QuantizedDecoder | None":
    """Prepare the fused step, or give None where model, weights or processor do not support it.

    threads: None takes one for each core that this process may use, and at most `most_threads()`.
    """
    if not supported(weights, config) or kernels("quantized") is None:
        return None
    return QuantizedDecoder(weights, config, min(threads or most_threads(), most_threads()))


def supported(weights: Weights, config: ModelConfig) -> bool:
    """Tell whether a model is a large causal decoder, in int8 or int4, whose blocks have the fused step."""
    writes = config.output == "lm" and config.logit_scale == 1.0 and not config.is_encoder_decoder
    large = weights.kind in ("int8", "int4") and weights.path.stat().st_size >= LEAST_BYTES
    return writes and large and has_fused_step(config.main, "quantized")


class QuantizedDecoder:
    """The addresses of a model's weights, shared by all rows."""

    def __init__(self, weights: Weights, config: ModelConfig, threads: int) -> None:
        from hanmo.inference.fused import quantized_kernel

        self._kernel = quantized_kernel.step
        self.stack, self.threads = stack, _ = config.main, threads
        self._vocab_size = config.vocab_size
        self._sizes = stack.num_heads, stack.head_dim, stack.feed_forward, ACTIVATIONS.index(stack.activation)
        self._read = read = cache(weights.array)  # keeps what the addresses point to

        def address(name: str) -> int:
            return read(name).ctypes.data if name in weights else 0

        def matrix(name: str, bias: str) -> list[int]:
            return [4 if read(name).dtype == np.uint8 else 8, *map(address, (name, f"{name}.scale", bias))]

        def norm(name: str) -> list[str]:
            return [f"{name}.weight", f"{name}.bias"]

        side = "decoder" if config.decoder else "encoder"
        blocks = [f"{side}.blocks.{0 if stack.shared_layers else layer}" for layer in range(stack.num_layers)]
        self._layers = np.array(
            [
                [field for name in MATRICES for field in matrix(f"{block}.{name}.weight", f"{block}.{name}.bias")]
                + [address(name) for sublayer in NORMS for name in norm(f"{block}.{sublayer}")]
                for block in blocks
            ],
            np.int64,
        )
        last = map(address, norm(f"{side}.norm")) if stack.final_norm else (0, 0)
        output = "token.weight" if config.tied else "output.weight"
        self._output = np.array([*matrix(output, "output.bias"), *last], np.int64)
        self._table, self._scales = read("token.weight"), read("token.weight.scale")
        self._positions = read(f"{side}.embedding.position.weight")
        self._norm = [read(name) if name in weights else None for name in norm(f"{side}.embedding.norm")]

    def step(self, id: int, position: int, cache: Array, at: int) -> Array:
        """Run one id; its keys and values go to index `at` of cache [layer, 2, heads, room, size]: logits [vocab]."""
        stack, logits = self.stack, np.empty(self._vocab_size, np.float32)
        shared = np.empty(2 * stack.hidden_size + max(3 * stack.hidden_size, stack.feed_forward), np.float32)
        x, scale, eps = self._embed(id, position), np.float32(stack.scale), np.float32(stack.norm_eps)
        given = (x, self._layers, self._output, self._sizes, scale, eps, cache, at, shared, logits)
        run_step(self._kernel, self.threads, *given)
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


class FusedRow:
    """One row's keys and values in bfloat16, and its next step."""

    def __init__(self, decoder: QuantizedDecoder, states: dict[str, Array], length: int) -> None:
        """Copy OpenVINO's states, "cache.LAYER.key" and "cache.LAYER.value": [1, heads, length, size]; {} if none."""
        self._decoder, self._length = decoder, length
        self._cache = self._empty(length + 1)
        for name, state in states.items():
            _, layer, word = name.split(".")
            bits = np.ascontiguousarray(state[0], np.float32).view(np.uint32)
            halves = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # bfloat16, to the nearest, ties to even
            self._cache[int(layer), WORDS.index(word), :, :length] = halves

    def step(self, id: int, position: int) -> Array:
        """Append an id: logits [vocab]."""
        if self._length == self._cache.shape[3]:
            old, self._cache = self._cache, self._empty(self._length + 1)
            self._cache[..., : self._length, :] = old
        logits = self._decoder.step(id, position, self._cache, self._length)
        self._length += 1
        return logits

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        self._length = length

    def states(self, length: int) -> dict[str, Array]:
        """Give the first tokens' keys and values as OpenVINO's states, float32."""
        return {
            f"cache.{layer}.{word}": (halves[None, :, :length].astype(np.uint32) << 16).view(np.float32)
            for layer, pair in enumerate(self._cache)
            for word, halves in zip(WORDS, pair, strict=True)
        }

    def _empty(self, least: int) -> Array:
        """Make room for a quarter more than is needed, and no more: memory counts before it is used."""
        stack = self._decoder.stack
        room = min(max(least, stack.positions or least), 32 + least * 5 // 4)
        return np.empty((stack.num_layers, 2, stack.num_heads, room, stack.head_dim), np.uint16)
