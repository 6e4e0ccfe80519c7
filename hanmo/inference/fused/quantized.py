"""The fused step over int8 or int4 weights: some tokens of one row or several through the decoder, without OpenVINO.

Knows which models have it, and the rows' keys and values. quantized_kernel.py computes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count

import numpy as np

from hanmo.checkpoint.source import Array
from hanmo.config import ModelConfig, StackConfig
from hanmo.inference.fused.support import ACTIVATIONS, NORMS, has_fused_step, kernels, most_threads
from hanmo.inference.fused.thread_pool import run_step
from hanmo.inference.openvino.weights import Weights

__all__ = ["FusedDynamicRows", "FusedRow", "FusedRows", "QuantizedDecoder", "open_decoder"]

LEAST_BYTES = 64 << 20
"""Smaller weights fit the processor's cache, where OpenVINO is as fast and compiling takes longer."""

MOST_TOKENS = 16  # of a step, which then computes about as long as it reads the weights
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
        self._table, self._scales = read("token.weight"), read("token.weight.scale").reshape(-1, 1)
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
        logits = np.empty((sum(wanted), self._vocab_size), np.float32)
        done = 0
        for first in range(0, len(tokens), MOST_TOKENS):
            part = tokens[first : first + MOST_TOKENS]
            kept = np.flatnonzero(wanted[first : first + MOST_TOKENS])
            self._run(part, kept, logits[done : done + len(kept)])
            done += len(kept)
        for row, ids, _ in work:
            row.length += len(ids)
        return logits

    def _run(self, tokens: Sequence[tuple["FusedRow", int, int]], kept: Array, logits: Array) -> None:
        stack = self.stack
        x = self._embed([id for _, id, _ in tokens], [at for _, _, at in tokens])
        places = np.array([[row.cache.ctypes.data, row.cache.shape[3], at] for row, _, at in tokens], np.int64)
        width = 2 * stack.hidden_size + max(3 * stack.hidden_size, stack.feed_forward)
        shared = np.empty((len(tokens), width), np.float32)
        scale, eps = np.float32(stack.scale), np.float32(stack.norm_eps)
        given = (x, places, kept, self._layers, self._output, self._sizes, scale, eps, shared, logits)
        run_step(self._kernel, self.threads, *given)

    def _embed(self, ids: Sequence[int], positions: Sequence[int]) -> Array:
        x = self._table[ids].astype(np.float32) * self._scales[ids] + self._positions[positions]
        if self.stack.embedding_norm:
            x = x - x.mean(-1, keepdims=True)
            x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(self.stack.embedding_norm_eps))
            weight, bias = self._norm
            x = x if weight is None else x * weight
            x = x if bias is None else x + bias
        return np.ascontiguousarray(x, np.float32)


class FusedRow:
    """One row's keys and values in bfloat16.   length: number of its tokens."""

    def __init__(self, stack: StackConfig, states: Mapping[str, Array], length: int) -> None:
        """Copy OpenVINO's states, "cache.LAYER.key" and "cache.LAYER.value": [1, heads, length, size]; {} if none."""
        self._stack, self.length = stack, length
        self.cache = self._empty(length + 1)
        for name, state in states.items():
            _, layer, word = name.split(".")
            bits = np.ascontiguousarray(state[0], np.float32).view(np.uint32)
            halves = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # bfloat16, to the nearest, ties to even
            self.cache[int(layer), WORDS.index(word), :, :length] = halves

    def reserve(self, count: int) -> None:
        """Make room for so many tokens more."""
        if self.length + count > self.cache.shape[3]:
            old, self.cache = self.cache, self._empty(self.length + count)
            self.cache[..., : self.length, :] = old[..., : self.length, :]

    def copy(self, length: int) -> "FusedRow":
        """Return a new row with the first `length` tokens."""
        new = FusedRow(self._stack, {}, length)
        new.cache[..., :length, :] = self.cache[..., :length, :]
        return new

    def states(self, length: int) -> dict[str, Array]:
        """Give the first tokens' keys and values as OpenVINO's states, float32."""
        return {
            f"cache.{layer}.{word}": (halves[None, :, :length].astype(np.uint32) << 16).view(np.float32)
            for layer, pair in enumerate(self.cache)
            for word, halves in zip(WORDS, pair, strict=True)
        }

    def _empty(self, least: int) -> Array:
        """Make room for a quarter more than is needed, and no more: memory counts before it is used."""
        stack = self._stack
        room = min(max(least, stack.positions or least), 32 + least * 5 // 4)
        return np.empty((stack.num_layers, 2, stack.num_heads, room, stack.head_dim), np.uint16)


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
    """Rows that join and leave; see `DynamicRows`.

    read: reads a prompt that is longer than `short`, which the fused step would read more slowly: (ids, keep) → the row
    and the logits [keep, vocab].
    """

    def __init__(
        self, decoder: QuantizedDecoder, short: int, read: Callable[[Sequence[int], int], tuple[FusedRow, Array]]
    ) -> None:
        self._decoder, self._short, self._read = decoder, short, read
        self.rows: dict[int, FusedRow] = {}
        self._pending: dict[int, list[int]] = {}  # beginnings of prompts; how one is read depends on its length
        self._numbers = count()

    def add(self, room: int) -> int:
        """Return the number of a new row; see `DynamicRows.add`."""
        return self._new(FusedRow(self._decoder.stack, {}, 0))

    def fork(self, row: int, count: int) -> list[int]:
        """Return the numbers of copies; see `DynamicRows.fork`."""
        old = self.rows[row]
        return [self._new(old.copy(old.length)) for _ in range(count)]

    def free(self, row: int) -> None:
        """Forget a row."""
        del self.rows[row]
        self._pending.pop(row, None)

    def drop(self, row: int, count: int) -> None:
        """Forget the last ids of a row."""
        self.rows[row].length -= count

    def step(self, work: Sequence[tuple[int, Sequence[int], int]]) -> list[Array]:
        """Append pieces, (row, ids, keep); see `DynamicRows.step`."""
        logits: dict[int, Array] = {}
        short = []
        for number, piece, keep in work:
            row, ids = self.rows[number], [*self._pending.pop(number, ()), *piece]
            if not row.length and not keep:
                self._pending[number] = ids
                logits[number] = np.empty((0, 0), np.float32)
            elif not row.length and len(ids) > self._short:
                self.rows[number], logits[number] = self._read(ids, keep)
            else:
                short.append((number, row, ids, keep))
        found = self._decoder.step([(row, ids, keep) for _, row, ids, keep in short])
        ends = np.cumsum([keep for *_, keep in short])
        for (number, *_, keep), end in zip(short, ends, strict=True):
            logits[number] = found[end - keep : end]
        return [logits[number] for number, *_ in work]

    def _new(self, row: FusedRow) -> int:
        number = next(self._numbers)
        self.rows[number] = row
        return number
