"""Rows of the CPU engine: an inference request with its cache, or the fused step's cache, and their tokens."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import openvino as ov
from array_api_compat import numpy as xp

from hanmo.checkpoint.source import Array
from hanmo.config import StackConfig
from hanmo.inference.fused.quantized import FusedRows, QuantizedStack
from hanmo.inference.fused.quantized_row import FusedRow
from hanmo.nn.position import Tokens, bucket, distance, sinusoidal

__all__ = ["OpenVinoRows", "append_tokens"]


class OpenVinoRows:
    """The rows of one `prefill`.

    With the fused step the cache is that of `FusedRows`, until padded or moved tokens need the graph. Then, and without
    it, the cache is the request's state.
    """

    def __init__(
        self,
        new_request: Callable[[], ov.InferRequest],
        stack: StackConfig,
        rows: int,
        decoder: QuantizedStack | None = None,
    ) -> None:
        self._new_request, self._stack, self._decoder = new_request, stack, decoder
        self._tokens = Tokens()
        self._fused = None if decoder is None else FusedRows(decoder, [FusedRow(stack) for _ in range(rows)])
        self._order = list(range(rows))  # the row of the request's state that each row continues
        self._memory: dict[str, Array] = {}

    @cached_property
    def _request(self) -> ov.InferRequest:
        return self._new_request()

    @property
    def length(self) -> int:
        """Number of tokens of each row in the cache."""
        return self._tokens.length

    @property
    def fused(self) -> list[FusedRow]:
        """The fused step's rows; none without it."""
        return [] if self._fused is None else self._fused.rows

    def step(self, ids: Sequence[int]) -> Array:
        """Append one id to every row and return the logits [rows, vocab]; see `Rows.step`."""
        return self.run(np.array(ids)[:, None], segment=int(self._stack.mask == "prefix"))[:, -1]

    def extend(self, ids: Sequence[int]) -> Array:
        """Append ids to the only row and return the logits [ids, vocab] behind each; see `ExtendableRows.extend`."""
        return self.run(np.array([ids]), segment=int(self._stack.mask == "prefix"), keep=len(ids))[0]

    def drop(self, count: int) -> None:
        """Forget the last ids of every row; see `ExtendableRows.drop`."""
        self.cut(self.length - count)

    def reorder(self, rows: Sequence[int]) -> None:
        """Make new row i a copy of old row rows[i], in the request's state at the next step; see `Rows.reorder`."""
        kept = list(rows)
        if self._fused is not None:
            self._fused.reorder(kept)
            self._order = list(range(len(kept)))
        else:
            self._order = [self._order[row] for row in kept]
        self._tokens = self._tokens.take(kept)
        self._memory = {name: array[kept] for name, array in self._memory.items()}

    def join(self, other: "OpenVinoRows") -> None:
        """Append the rows of another `prefill`; see `JoinableRows.join`."""
        rows, others = len(self._order), len(other._order)
        tokens = self._tokens.join(other._tokens, rows, others, xp)
        joined = {}
        below = other._states(other._order, other.length)
        for name, above in self._states(self._order, self.length).items():
            joined[name] = np.zeros((rows + others, above.shape[1], tokens.length, above.shape[3]), above.dtype)
            for part, place in ((above, slice(rows)), (below[name], slice(rows, None))):
                columns = min(part.shape[2], tokens.length)  # all before them are padding
                joined[name][place, :, tokens.length - columns :] = part[:, :, part.shape[2] - columns :]
        self._fill(self._request, joined)
        self._tokens, self._order = tokens, list(range(rows + others))

    def set_memory(self, memory: dict[str, Array], mask: Array) -> None:
        """Have all steps attend to the keys and values of an encoder's output; mask: [b, m], False for padding."""
        self._memory = {**memory, "memory_mask": _additive(mask)[:, None, None]}
        for number, row in enumerate(self.fused):
            keys, values = (
                np.stack(
                    [
                        memory[f"memory.{layer}.{word}"][number][:, mask[number]]
                        for layer in range(self._stack.num_layers)
                    ]
                )
                for word in ("key", "value")
            )
            row.set_memory(keys, values)

    def cut(self, length: int) -> None:
        """Forget every token from `length` on."""
        if length < self.length:
            for row in self.fused:
                row.length = length
            if self._fused is None:
                self._fill(self._request, self._states(self._order, length))
                self._order = list(range(len(self._order)))
            self._tokens = self._tokens.cut(length)

    def copy(self, row: int, length: int) -> "OpenVinoRows":
        """Copy one row with its first `length` tokens."""
        new = OpenVinoRows(self._new_request, self._stack, 1, self._decoder)
        new._tokens = self._tokens.take([row]).cut(length)
        new._fused = None
        if self._fused is not None and self._decoder is not None:
            new._fused = FusedRows(self._decoder, [self._fused.rows[row].copy(length)])
        else:
            self._fill(new._request, self._states([self._order[row]], length))
        return new

    def run(
        self,
        ids: Array,
        *,
        segment: int | Array = 0,
        mask: Array | None = None,
        positions: Array | None = None,
        keep: int = 1,
    ) -> Array:
        """Append ids [b, n] to the rows: logits [b, keep, vocab] of the last `keep` of them.

        segment, mask, positions: as for `append_tokens`.
        """
        length = self.length
        self._tokens, feed = append_tokens(
            self._stack, self._tokens, ids, segment=segment, mask=mask, positions=positions
        )
        plain = self._tokens.mask is None or bool(self._tokens.mask.all())
        plain = plain and bool((self._tokens.positions == np.arange(self.length)).all())
        if self._fused is not None and self._decoder is not None and plain:
            work = [(row, new, keep) for row, new in zip(self._fused.rows, ids.tolist(), strict=True)]
            return self._decoder.step(work).reshape(len(ids), keep, -1)
        self._leave_fused(length)
        feed |= self._memory
        feed["beam_idx"] = np.array(self._order, np.int32)
        feed["keep"] = np.array([keep], np.int32)
        if self._stack.has_cross and self._stack.cross_positions:
            memory = np.arange(self._memory["memory_mask"].shape[-1])[None]
            feed["memory_buckets"] = _buckets(self._stack, self._tokens.positions[:, -ids.shape[1] :], memory)
        self._request.infer(feed, share_inputs=True)
        self._order = list(range(len(ids)))
        logits: Array = self._request.get_tensor("logits").data
        return logits.copy()

    def _leave_fused(self, length: int) -> None:
        """Move the cache of so many tokens from the fused step's row to the request."""
        if self._fused is not None:
            states = self._states(self._order, length)
            self._fused = None
            self._fill(self._request, states)

    def _states(self, rows: list[int], length: int) -> dict[str, Array]:
        """Give the first tokens' keys and values of these rows, [b, heads, length, size] each, by name.

        States that the plugin keeps in 8 bits are read as float32 and written back to the same bits.
        """
        if not length:
            return {}
        if self._fused is not None:
            parts = [self._fused.rows[row].states(length) for row in rows]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        states = self._request.query_state()
        return {each.name: np.ascontiguousarray(each.state.data[rows, :, :length]) for each in states}

    def _fill(self, request: ov.InferRequest, states: dict[str, Array]) -> None:
        for each in request.query_state():
            if states:
                each.state = ov.Tensor(states[each.name])
            else:
                each.reset()


def append_tokens(
    stack: StackConfig,
    tokens: Tokens,
    ids: Array,
    *,
    segment: int | Array = 0,
    mask: Array | None = None,
    positions: Array | None = None,
) -> tuple[Tokens, dict[str, Array]]:
    """Add new tokens, ids [b, n], to those before them: all tokens, and the graph's inputs for the new ones.

    segment: of all of them, or [b or 1, n].   mask, positions: as for `Tokens.append`.
    """
    rows, count = ids.shape
    segments = np.atleast_2d(segment)
    spread = np.broadcast_to(segments, (len(segments), count))
    tokens = tokens.append(stack.mask, ids, xp, segments=spread, mask=mask, positions=positions)
    new = tokens.positions[:, -count:]
    # OpenVINO's attention in bfloat16 applies a mask that rows share wrongly behind the first row (2026.4.1).
    visible = np.broadcast_to(tokens.visible(count), (rows, 1, count, tokens.length))
    inputs: dict[str, Array] = {"ids": ids.astype(np.int32), "mask": _additive(visible)}
    if stack.segments:
        inputs["segments"] = segments.astype(np.int32)
    match stack.position:
        case "learned":
            inputs["positions"] = (new + stack.position_offset).astype(np.int32)
        case "sinusoidal":
            inputs["waves"] = sinusoidal(new, stack.embedding_size, xp)
        case "rotary":
            table = sinusoidal(new, stack.key_dim, xp).reshape(len(new), 1, count, -1, 2)
            inputs["sines"], inputs["cosines"] = table[..., :1].copy(), table[..., 1:].copy()
        case "relative":
            clip = stack.relative_clip
            inputs["distances"] = (distance(new, tokens.positions).clip(-clip, clip) + clip).astype(np.int32)
        case "buckets":
            inputs["buckets"] = _buckets(stack, new, tokens.positions)
    return tokens, inputs


def _buckets(stack: StackConfig, queries: Array, keys: Array) -> Array:
    """Give T5's buckets of the distances from queries [b, n] to keys [b, m], which an encoder has on both sides."""
    both_ways, far = stack.mask == "full", stack.bucket_distance
    found: Array = bucket(distance(queries, keys), xp, both_ways=both_ways, buckets=stack.buckets, limit=far)
    return found.astype(np.int32)


def _additive(visible: Array) -> Array:
    """Turn a mask that is True where one may attend into what is added to scores: 0 or -inf, float32."""
    return np.where(visible, np.float32(0), np.float32(-np.inf))
