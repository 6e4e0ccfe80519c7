"""The fused step over int8 or int4 weights: some tokens of one row or several through the decoder, without OpenVINO.

Knows which models have it, and the rows' keys and values. quantized_kernel.py computes.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count

import numpy as np

from hanmo.checkpoint.source import Array
from hanmo.config import ModelConfig, StackConfig
from hanmo.inference.fused.packing import LANES
from hanmo.inference.fused.support import ACTIVATIONS, NORMS, allow_tiles, has_fused_step, kernels, most_threads
from hanmo.inference.fused.thread_pool import run_step
from hanmo.inference.openvino.weights import Weights

__all__ = ["FusedDynamicRows", "FusedRow", "FusedRows", "QuantizedDecoder", "open_decoder"]

LEAST_BYTES = 64 << 20
"""Smaller weights fit the processor's cache, where OpenVINO is as fast and compiling takes longer."""

MOST_TOKENS = 128  # of a step, whose numbers then fit the processor's cache
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
    large = weights.packed and weights.path.stat().st_size >= LEAST_BYTES
    return writes and large and has_fused_step(config.main, "quantized")


class QuantizedDecoder:
    """The addresses of a model's weights, shared by all rows."""

    def __init__(self, weights: Weights, config: ModelConfig, threads: int) -> None:
        from hanmo.inference.fused import quantized_kernel

        self._kernel = quantized_kernel.step
        self.stack, self.threads = stack, _ = config.main, threads
        self._vocab_size, self._padded = config.vocab_size, -(-config.vocab_size // LANES) * LANES
        self._sizes = stack.num_heads, stack.head_dim, stack.feed_forward, ACTIVATIONS.index(stack.activation)
        self._tiles = tiles() if allow_tiles() else np.empty(0, np.uint8)
        self._read = read = cache(weights.array)  # keeps what the addresses point to
        self._no_bias = np.zeros(max(3 * stack.hidden_size, stack.feed_forward, self._padded), np.float32)

        def address(name: str) -> int:
            return read(name).ctypes.data if name in weights else 0

        def matrix(name: str, bias: str) -> list[int]:
            bits = 4 if read(name).dtype == np.uint8 else 8
            return [bits, address(name), address(f"{name}.scale"), address(bias) or self._no_bias.ctypes.data]

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
        if "output.bias" in weights:
            self._bias = np.pad(read("output.bias"), (0, self._padded - config.vocab_size))
            self._output[3] = self._bias.ctypes.data
        self._table, self._scales = read("token.weight"), read("token.weight.scale")
        self._positions = read(f"{side}.embedding.position.weight")
        self._norm = [read(name) if name in weights else None for name in norm(f"{side}.embedding.norm")]

    def step(self, work: Sequence[tuple["FusedRow", Sequence[int], int]]) -> Array:
        """Append ids to rows, weights read once for each `MOST_TOKENS` of them.

        work: (row, ids, how many of the last ids' logits are wanted).   Returns these logits, [wanted, vocab].
        The logits of a row depend neither on the other rows nor on how its ids are divided.
        """
        for row, ids, _ in work:
            row.reserve(len(ids))
        tokens = [(row, id, row.length + place) for row, ids, _ in work for place, id in enumerate(ids)]
        wanted = [place >= len(ids) - keep for _, ids, keep in work for place in range(len(ids))]
        logits = []
        for first in range(0, len(tokens), MOST_TOKENS):
            kept = np.flatnonzero(wanted[first : first + MOST_TOKENS])
            logits.append(self._run(tokens[first : first + MOST_TOKENS], kept))
        for row, ids, _ in work:
            row.length += len(ids)
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _run(self, tokens: Sequence[tuple["FusedRow", int, int]], kept: Array) -> Array:
        stack = self.stack
        x = self._embed(np.array([id for _, id, _ in tokens]), [at for _, _, at in tokens])
        places = np.array([[row.cache.ctypes.data, row.room, at] for row, _, at in tokens], np.int64)
        width = 2 * stack.hidden_size + max(3 * stack.hidden_size, stack.feed_forward)
        shared = np.zeros((self._rows(len(tokens)), width), np.float32)
        logits = np.zeros((self._rows(len(kept)), self._padded), np.float32)
        scale, eps = np.float32(stack.scale), np.float32(stack.norm_eps)
        given = (x, places, kept, self._layers, self._output, self._sizes, scale, eps, self._tiles, shared, logits)
        run_step(self._kernel, self.threads, *given)
        return logits[: len(kept), : self._vocab_size]

    def _rows(self, tokens: int) -> int:
        """Round up to what tiles write."""
        return -(-tokens // 16) * 16 if len(self._tiles) and tokens > 3 else tokens

    def _embed(self, ids: Array, positions: Sequence[int]) -> Array:
        blocks, lanes = ids // LANES, ids % LANES
        x = self._table[blocks, :, lanes].view(np.uint8).reshape(len(ids), -1).astype(np.float32) - np.float32(128)
        x = x * self._scales[blocks, 0, lanes][:, None] + self._positions[positions]
        if self.stack.embedding_norm:
            x = x - x.mean(-1, keepdims=True)
            x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(self.stack.embedding_norm_eps))
            weight, bias = self._norm
            x = x if weight is None else x * weight
            x = x if bias is None else x + bias
        return np.ascontiguousarray(x, np.float32)


def tiles() -> Array:
    """Make a configuration of 8 tiles of 16 rows of 64 bytes."""
    made = np.zeros(64, np.uint8)
    made[0] = 1
    made.view(np.uint16)[8:16] = 64
    made[48:56] = 16
    return made


class FusedRow:
    """One row's keys and values in bfloat16, as quantized_blocks.py says.   length: number of its tokens."""

    def __init__(self, stack: StackConfig) -> None:
        self._stack, self.length = stack, 0
        self.cache = self._empty(1)

    @property
    def room(self) -> int:
        """Number of tokens that the cache can hold."""
        return self.cache.shape[3] * LANES

    def reserve(self, count: int) -> None:
        """Make room for so many tokens more."""
        if self.length + count > self.room:
            old, self.cache = self.cache, self._empty(self.length + count)
            self._fill(old)

    def copy(self, length: int) -> "FusedRow":
        """Return a new row with the first `length` tokens."""
        new = FusedRow(self._stack)
        new.length, new.cache = length, new._empty(length + 1)
        new._fill(self.cache)
        return new

    def states(self, length: int) -> dict[str, Array]:
        """Give the first tokens' keys and values as OpenVINO's states, [1, heads, length, size], float32, by name."""
        layers, _, heads, blocks, _ = self.cache.shape
        size = self._stack.head_dim
        wide = (self.cache.astype(np.uint32) << 16).view(np.float32)
        keys = wide[:, 0].reshape(layers, heads, blocks, size // 2, LANES, 2).transpose(0, 1, 2, 4, 3, 5)
        values = wide[:, 1].reshape(layers, heads, blocks, LANES // 2, size, 2).transpose(0, 1, 2, 3, 5, 4)
        return {
            f"cache.{layer}.{word}": np.ascontiguousarray(state[layer].reshape(1, heads, -1, size)[:, :, :length])
            for word, state in zip(WORDS, (keys, values), strict=True)
            for layer in range(layers)
        }

    def _fill(self, old: Array) -> None:
        used = -(-self.length // LANES)
        self.cache[:, :, :, :used] = old[:, :, :, :used]

    def _empty(self, least: int) -> Array:
        """Make room for a quarter more than is needed, and no more: memory counts before it is used."""
        stack = self._stack
        room = min(max(least, stack.positions or least), 32 + least * 5 // 4)
        blocks = -(-room // LANES)
        return np.zeros((stack.num_layers, 2, stack.num_heads, blocks, LANES * stack.head_dim), np.uint16)


class FusedRows:
    """Rows of any lengths that are stepped together; see `Rows`."""

    def __init__(self, decoder: QuantizedDecoder, rows: Sequence[FusedRow]) -> None:
        self._decoder, self.rows = decoder, list(rows)

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row and return the logits [rows, vocab]; see `Rows.step`."""
        return self._decoder.step([(row, [id], 1) for row, id in zip(self.rows, ids, strict=True)])

    def reorder(self, rows: Sequence[int]) -> None:
        """Make new row i a copy of old row rows[i]; see `Rows.reorder`."""
        first = {row: place for place, row in reversed([*enumerate(rows)])}
        self.rows = [
            self.rows[row] if first[row] == place else self.rows[row].copy(self.rows[row].length)
            for place, row in enumerate(rows)
        ]


class FusedDynamicRows:
    """Rows that join and leave; see `DynamicRows`."""

    def __init__(self, decoder: QuantizedDecoder) -> None:
        self._decoder = decoder
        self.rows: dict[int, FusedRow] = {}
        self._numbers = count()

    def add(self, room: int) -> int:
        """Return the number of a new row; see `DynamicRows.add`."""
        return self._new(FusedRow(self._decoder.stack))

    def fork(self, row: int, count: int) -> list[int]:
        """Return the numbers of copies; see `DynamicRows.fork`."""
        old = self.rows[row]
        return [self._new(old.copy(old.length)) for _ in range(count)]

    def free(self, row: int) -> None:
        """Forget a row."""
        del self.rows[row]

    def drop(self, row: int, count: int) -> None:
        """Forget the last ids of a row."""
        self.rows[row].length -= count

    def step(self, work: Sequence[tuple[int, Sequence[int], int]]) -> list[Array]:
        """Append pieces, (row, ids, keep); see `DynamicRows.step`."""
        logits = self._decoder.step([(self.rows[number], ids, keep) for number, ids, keep in work])
        return np.split(logits, np.cumsum([keep for _, _, keep in work])[:-1])

    def _new(self, row: FusedRow) -> int:
        number = next(self._numbers)
        self.rows[number] = row
        return number
