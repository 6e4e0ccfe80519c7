"""The fused step over int8 or int4 weights: some tokens of one row or several through a stack, without OpenVINO.

Knows which models have it. quantized_kernel.py computes.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count

import numpy as np
from array_api_compat import numpy as xp

from hanmo.checkpoint.source import Array
from hanmo.config import ModelConfig
from hanmo.inference.fused.packing import BETWEEN, LANES, group_size, pack_int4, pack_int8, pack_scales
from hanmo.inference.fused.quantized_row import FusedRow
from hanmo.inference.fused.support import ACTIVATIONS, allow_tiles, has_fused_step, is_large, kernels, most_threads
from hanmo.inference.fused.thread_pool import run_step
from hanmo.inference.openvino.weights import Weights
from hanmo.nn.position import bucket, hierarchical, sinusoidal

__all__ = ["FusedDynamicRows", "FusedRows", "QuantizedStack", "open_stack"]

MOST_TOKENS = 256  # of a step: 1.6 MB of quantized inputs of a feed-forward of 6,144, which fit 2 MB of cache
MOST_UNDIVIDED = 16  # tokens, whose norms and quantization every thread computes for itself
INPUTS = {"attention": "query_key_value", "cross": "query", "feed_forward": "input"}
"""Of each kind of sub-layer, by its number in the kernel: the matrix that multiplies its input."""


def open_stack(weights: Weights, config: ModelConfig, threads: int | None) -> "QuantizedStack | None":
    """Prepare the fused step, or give None where model, weights or processor do not support it.

    threads: None takes one for each core that this process may use, and at most `most_threads()`.
    """
    if not supported(weights, config) or kernels("quantized") is None:
        return None
    return QuantizedStack(weights, config, min(threads or most_threads(), most_threads()))


def supported(weights: Weights, config: ModelConfig) -> bool:
    """Tell whether a model of some size, in int8 or int4, is a decoder or an encoder alone that has the fused step."""
    stack = config.main
    if weights.kind not in ("int8", "int4") or not is_large(weights.path.stat().st_size):
        return False
    if not has_fused_step(stack, "quantized"):
        return False
    if stack.mask == "full":
        return stack.position != "buckets"
    writes = config.output == "lm" or (config.output == "mlm" and config.head_activation in ACTIVATIONS)
    return writes and (config.logit_scale == 1.0 or stack.final_norm)


class QuantizedStack:
    """The addresses of a model's weights, shared by all rows.

    outputs: number of results of a token: logits or, of an encoder alone, the hidden state.
    """

    def __init__(self, weights: Weights, config: ModelConfig, threads: int) -> None:
        from hanmo.inference.fused import quantized_kernel

        self._kernel = quantized_kernel.step
        self.stack, self.threads = stack, _ = config.main, threads
        self._weights, self._config = weights, config
        self.outputs = stack.hidden_size if stack.mask == "full" else config.vocab_size
        self._padded = -(-self.outputs // LANES) * LANES
        kinds = [ACTIVATIONS.index(stack.activation)]
        kinds += [ACTIVATIONS.index(config.head_activation) if config.output == "mlm" else 0]
        self._groups = max(size // group_size(size) for size in (stack.hidden_size, stack.feed_forward))
        self._sizes = stack.num_heads, stack.head_dim, stack.feed_forward, 1 + stack.gated, *kinds
        self._tiles = tiles() if allow_tiles() else np.empty(0, np.uint8)
        self._read = cache(self._packed)  # keeps what the addresses point to
        self._ones = np.full(stack.hidden_size, 1, np.float32)
        self._no_bias = np.zeros(max(3 * stack.hidden_size, 2 * stack.feed_forward, self._padded), np.float32)
        side = "decoder" if config.decoder else "encoder"
        self._layers = np.array(
            [
                self._row(f"{side}.blocks.{0 if stack.shared_layers else layer}.{sublayer.kind}", layer)
                for layer in range(stack.num_layers)
                for sublayer in stack.order
            ],
            np.int64,
        )
        self._output = np.array(self._output_row(f"{side}.norm"), np.int64)
        self._table, self._scales = self._read("token.weight"), self._read("token.weight.scale")
        names = [f"{side}.embedding.{table}.weight" for table in ("position", "segment")]
        self._positions, self._segments = [self._read(name) if name in weights else None for name in names]
        self._norm = [
            self._read(name) if name in weights else None
            for name in (f"{side}.embedding.norm.weight", f"{side}.embedding.norm.bias")
        ]
        self._relative = self._read(f"{side}.relative.weight") if stack.position == "buckets" else None
        self._biases = np.empty((stack.num_heads, 0), np.float32)
        self._distances = np.empty((0, 0), np.float32)
        if stack.position == "relative":
            self._distances = sinusoidal(np.arange(2 * stack.relative_clip, -1, -1), stack.key_dim, xp)

    def _packed(self, name: str) -> Array:
        """Read a tensor in the order of the fused step."""
        array, matrix = self._weights.array(name), name.removesuffix(".scale")
        if self._weights.packed or f"{matrix}.scale" not in self._weights:
            return array
        if matrix != name:
            return pack_scales(array)
        packed = pack_int8(array) if array.dtype == np.int8 else pack_int4(array)
        room = np.empty(packed.nbytes + 64, np.uint8)
        aligned = room[-room.ctypes.data % 64 :][: packed.nbytes].view(packed.dtype).reshape(packed.shape)
        aligned[:] = packed  # as weights in a file are
        return aligned

    def _address(self, name: str) -> int:
        return self._read(name).ctypes.data if name in self._weights else 0

    def _matrix(self, name: str, bias: str | None = None) -> list[int]:
        bits = 4 if self._read(f"{name}.weight").dtype == np.uint8 else 8
        addresses = [self._address(f"{name}.weight"), self._address(f"{name}.weight.scale")]
        return [bits, *addresses, self._address(bias or f"{name}.bias") or self._no_bias.ctypes.data]

    def _norm_of(self, name: str) -> list[int]:
        """Give weight and bias of a norm, whose weight is 1 if it has none."""
        return [self._address(f"{name}.weight") or self._ones.ctypes.data, self._address(f"{name}.bias")]

    def _row(self, name: str, layer: int) -> list[int]:
        """Make a sub-layer's row of `quantized_kernel.step`."""
        kind = name.rpartition(".")[2]
        sublayer = next(each for each in self.stack.order if each.kind == kind)
        gate = "gate_" if kind == "feed_forward" and self.stack.gated else ""
        matrices = [*self._matrix(f"{name}.{gate}{INPUTS[kind]}"), *self._matrix(f"{name}.output")]
        pre = self._norm_of(f"{name}_pre") if sublayer.pre else [0, 0]
        post = self._norm_of(f"{name}_post") if sublayer.post else [0, 0]
        return [*matrices, *pre, *post, [*INPUTS].index(kind), layer]

    def _output_row(self, norm: str) -> list[int]:
        """Make `output` of `quantized_kernel.step`."""
        config = self._config
        last = self._norm_of(norm) if self.stack.final_norm else [0, 0]
        if self.stack.mask == "full":
            return [*[0] * 8, *last, 0, 0]
        row = self._matrix("token" if config.tied else "output", "output.bias")
        if "output.bias" in self._weights:
            self._bias = np.pad(self._read("output.bias"), (0, self._padded - config.vocab_size))
            row[3] = self._bias.ctypes.data
        if config.logit_scale != 1.0:
            own = self._read(f"{norm}.weight") if f"{norm}.weight" in self._weights else self._ones
            self._scaled = own * np.float32(config.logit_scale)
            last[0] = self._scaled.ctypes.data
        if config.output != "mlm":
            return [*row, *[0] * 4, *last, 0, 0]
        return [*row, *self._matrix("output.dense"), *last, *self._norm_of("output.norm")]

    def step(self, work: Sequence[tuple[FusedRow, Sequence[int], int]], *, segments: Array | None = None) -> Array:
        """Append ids to rows, weights read once for each `MOST_TOKENS` of them.

        work: (row, ids, how many of the last ids' logits are wanted).   Returns these logits, [wanted, outputs].
        The logits of a row depend neither on the other rows nor on how its ids are divided.
        segments: of all ids, for an encoder alone; None: those of the mask.
        """
        for row, ids, _ in work:
            row.reserve(len(ids))
            if self.stack.mask != "causal" and not row.length:
                row.prefix = len(ids)
        tokens = [(row, id, row.length + place) for row, ids, _ in work for place, id in enumerate(ids)]
        wanted = [place >= len(ids) - keep for _, ids, keep in work for place in range(len(ids))]
        logits = []
        most = MOST_TOKENS if self.stack.mask == "causal" else len(tokens)  # a prefix sees all of itself
        for first in range(0, len(tokens), most):
            kept = np.flatnonzero(wanted[first : first + most])
            logits.append(self._run(tokens[first : first + most], kept, segments))
        for row, ids, _ in work:
            row.length += len(ids)
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _run(self, tokens: Sequence[tuple[FusedRow, int, int]], kept: Array, segments: Array | None) -> Array:
        stack = self.stack
        positions, prefixes = np.array([at for _, _, at in tokens]), np.array([row.prefix for row, _, _ in tokens])
        if segments is None:
            segments = ((positions >= prefixes) & (stack.mask == "prefix")).astype(int)
        x = self._embed(np.array([id for _, id, _ in tokens]), positions, segments)
        given = [
            [row.cache.ctypes.data, row.room, at, max(at + 1, row.prefix), *row.memory_at] for row, _, at in tokens
        ]
        wide = max(3 * stack.hidden_size, (1 + stack.gated) * stack.feed_forward)
        shared = np.zeros((self._rows(len(tokens)), 2 * stack.hidden_size + wide + LANES), np.float32)
        logits = np.zeros((self._rows(len(kept)), self._padded), np.float32)
        scalars = [np.float32(each) for each in (stack.scale, stack.norm_eps, self._config.head_norm_eps)]
        rotary = np.empty((0, 0), np.float32)
        if stack.position == "rotary":
            rotary = sinusoidal(positions, stack.key_dim, xp)
        biases = self._biases_of(int(positions.max()) + 1)
        run_step(
            self._kernel, self.threads, *self._copies(x), np.array(given, np.int64), kept, self._layers, self._output,
            self._sizes, *scalars, stack.norm == "rms", rotary, biases, self._distances, self._tiles, shared, logits,
        )  # fmt: skip
        return logits[: len(kept), : self.outputs]

    def _copies(self, x: Array) -> tuple[Array, ...]:
        """Give x and room for its quantized numbers: one for all threads, or of few tokens one to each.

        With copies the threads wait for each other half as often.
        """
        copies, tokens = 1 if len(x) > MOST_UNDIVIDED else self.threads, self._rows(len(x))
        line = max(self.stack.hidden_size, self.stack.feed_forward) + BETWEEN
        unaligned = np.empty(copies * tokens * line + 64, np.int8)
        numbers = unaligned[-unaligned.ctypes.data % 64 :][: copies * tokens * line].reshape(copies, -1)
        scales, shift = (np.zeros((copies, tokens * self._groups), kind) for kind in (np.float32, np.int32))
        return np.repeat(x[None], copies, 0), numbers, scales, shift

    def _biases_of(self, length: int) -> Array:
        """Look up T5's biases of so many distances to the left, and of some more: [heads, distances]."""
        biases = self._biases
        if self._relative is not None and biases.shape[1] < length:
            stack, distances = self.stack, -np.arange(length * 5 // 4 + 32)
            rows = bucket(distances, xp, both_ways=False, buckets=stack.buckets, limit=stack.bucket_distance)
            self._biases = biases = np.ascontiguousarray(self._relative[:, rows])
        return biases

    def _rows(self, tokens: int) -> int:
        """Round up to what tiles read and write."""
        return -(-tokens // 16) * 16 if len(self._tiles) and tokens > 3 else tokens

    def _embed(self, ids: Array, positions: Array, segments: Array) -> Array:
        blocks, lanes = ids // LANES, ids % LANES
        x = self._table[blocks, :, lanes].reshape(len(ids), -1).astype(np.float32)
        x = x * self._scales[blocks, 0, lanes][:, None]
        if self._segments is not None:
            x = x + self._segments[segments]
        stack = self.stack
        if stack.hierarchical:
            x = x + hierarchical(self._positions, positions, stack.hierarchical)
        elif self._positions is not None:
            x = x + self._positions[positions + stack.position_offset]
        if stack.position == "sinusoidal":
            x = x + sinusoidal(positions, stack.embedding_size, xp)
        if stack.embedding_norm:
            x = x if stack.norm == "rms" else x - x.mean(-1, keepdims=True)
            x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(stack.embedding_norm_eps))
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


class FusedRows:
    """Rows of any lengths that are stepped together; see `Rows`."""

    def __init__(self, decoder: QuantizedStack, rows: Sequence[FusedRow]) -> None:
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

    read: gives the row of a prompt that must not be divided, and the logits [1, vocab] behind it; None: none is such.
    """

    def __init__(
        self, decoder: QuantizedStack, read: Callable[[Sequence[int]], tuple[FusedRow, Array]] | None = None
    ) -> None:
        self._decoder, self._read = decoder, read
        self.rows: dict[int, FusedRow] = {}
        self._pending: dict[int, list[int]] = {}  # ids of prompts that `read` has not been given
        self._numbers = count()

    def add(self, room: int) -> int:
        """Return the number of a new row; see `DynamicRows.add`."""
        number = self._new(FusedRow(self._decoder.stack))
        if self._read is not None:
            self._pending[number] = []
        return number

    def fork(self, row: int, count: int) -> list[int]:
        """Return the numbers of copies; see `DynamicRows.fork`."""
        old = self.rows[row]
        copies = [old.copy(old.length) for _ in range(count)]  # all of them or, without memory, none
        return [self._new(copy) for copy in copies]

    def free(self, row: int) -> None:
        """Forget a row."""
        del self.rows[row]
        self._pending.pop(row, None)

    def drop(self, row: int, count: int) -> None:
        """Forget the last ids of a row."""
        self.rows[row].length -= count

    def step(self, work: Sequence[tuple[int, Sequence[int], int]]) -> list[Array]:
        """Append pieces, (row, ids, keep); see `DynamicRows.step`."""
        found = {number: self._begin(number, ids, keep) for number, ids, keep in work if number in self._pending}
        if going := [piece for piece in work if piece[0] not in found]:
            logits = self._decoder.step([(self.rows[number], ids, keep) for number, ids, keep in going])
            parts = np.split(logits, np.cumsum([keep for _, _, keep in going])[:-1])
            found |= zip([number for number, _, _ in going], parts, strict=True)
        return [found[number] for number, _, _ in work]

    def _begin(self, number: int, ids: Sequence[int], keep: int) -> Array:
        """Collect a prompt's ids and read them at once when logits are wanted: [keep, vocab].

        The last keep - 1 of them are read behind the prompt.
        """
        pending = self._pending[number]
        pending += ids
        if not keep or self._read is None:
            return np.empty((0, self._decoder.outputs), np.float32)
        del self._pending[number]
        first = len(pending) - keep + 1
        self.rows[number], logits = self._read(pending[:first])
        if keep == 1:
            return logits
        return np.concatenate([logits, self._decoder.step([(self.rows[number], pending[first:], keep - 1)])])

    def _new(self, row: FusedRow) -> int:
        number = next(self._numbers)
        self.rows[number] = row
        return number
