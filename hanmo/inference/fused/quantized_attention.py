"""Attention of the quantized step: keys and values in bfloat16, written to a row's cache, and softmax(q kᵀ) v.

Knows addresses and sizes; attention_blocks.py says how keys and values are stored.
"""

import numpy as np
from numba import carray, njit

from hanmo.inference.fused import attention_blocks as blocks
from hanmo.inference.fused import functions as fn
from hanmo.inference.fused.packing import LANES

__all__ = ["TILE_TOKENS", "attend_all"]

TILE_TOKENS = 16
_scores1, _scores8 = blocks.scores(1), blocks.scores(8)
_mix1, _mix4, _mix1_wide, _mix4_wide = (blocks.mix(tokens, vectors) for vectors in (1, 4) for tokens in (1, 4))


@njit(**fn.FAST)
def _append(cache, at, size, keys, values):
    """Write a token's keys and values, float32 [size] each, to one layer's and head's cache [2, blocks, 16 size]."""
    block, place = at // LANES, at % LANES
    for i in range(size):
        cache[0, block, i // 2 * 2 * LANES + place * 2 + i % 2] = fn.to_bfloat16(keys[i])
        cache[1, block, place // 2 * 2 * size + 2 * i + place % 2] = fn.to_bfloat16(values[i])


@njit(**fn.FAST)
def _softmax(scores, seen, at, scale, bias, right):
    """Turn a token's products with keys into weights, of which those from `seen` on are 0.

    bias: by distance to the left, from -`right` on, or [0]; farther keys have the last one's.
    """
    fn.wide_vectors()
    padded = (seen + LANES - 1) // LANES * LANES
    for i in range(padded):
        scores[i] *= scale
    if len(bias):
        for i in range(seen):
            scores[i] += bias[min(max(at - i + right, 0), len(bias) - 1)]
    scores[seen:padded] = np.float32(-np.inf)
    most = blocks.largest(fn.address_of(scores), np.int64(padded // LANES))
    for i in range(padded):
        scores[i] = fn.exp(scores[i] - most)
    scores[seen:] = np.float32(0.0)
    total = np.float32(0.0)
    for i in range(padded):
        total += scores[i]
    share = np.float32(1.0) / total
    for i in range(padded):
        scores[i] *= share


@njit(**fn.FAST)
def _sum_by_distance(weights, at, right, sums):
    """Sum a token's weights by distance, as `_softmax` has them."""
    sums[:] = np.float32(0.0)
    for i in range(len(weights)):
        sums[min(max(at - i + right, 0), len(sums) - 1)] += weights[i]


@njit(**fn.FAST)
def _attend(keys, values, first, seen, at, size, scale, bias, table, shared, start, out_start, scores, by_distance):
    """Attend from tokens of one row, the first at index `at`, to so many keys each: softmax(q kᵀ · scale + bias) v.

    keys, values: addresses.   seen: [tokens].   bias: T5's by distance to the left, or [0].
    table: NEZHA's, [distances, size], which is added to keys and values, or [0, 0].
    shared: [tokens, width]; queries begin at `start`, results at `out_start`.
    scores, by_distance: scratch, [16, keys] and [16, distances].
    """
    stride, width = shared.shape[1] * 4, scores.shape[1] * 4
    q, out = fn.address_of(shared) + first * stride + start * 4, fn.address_of(shared) + first * stride + out_start * 4
    s = fn.address_of(scores)
    count, last = len(seen), (seen.max() - 1) // LANES + 1
    token = 0
    while token < count:
        given = keys, q + token * stride, stride, size // 2, last, s + token * width, width
        if count - token >= 8:
            _scores8(given)
            token += 8
        else:
            _scores1(given)
            token += 1
    right = len(table) // 2
    for token in range(count):
        own, sums = scores[token, : last * LANES], by_distance[token]
        if len(table):
            fn.score(shared[first + token, start : start + size], table, scale, sums)
            _softmax(own, seen[token], at + token, scale, sums, right)
            _sum_by_distance(own[: seen[token]], at + token, right, sums)
        else:
            _softmax(own, seen[token], at + token, scale, bias, right)
    token = 0
    while token < count:
        rows = 4 if count - token >= 4 else 1
        dim = 0
        while dim < size:
            given = (
                values + 4 * dim, s + token * width, width, 4 * size, last * LANES // 2,
                out + token * stride + 4 * dim, stride,
            )  # fmt: skip
            if size - dim >= 4 * LANES:
                if rows == 4:
                    _mix4_wide(given)
                else:
                    _mix1_wide(given)
                dim += 4 * LANES
            else:
                if rows == 4:
                    _mix4(given)
                else:
                    _mix1(given)
                dim += LANES
        token += rows
    for token in range(count):
        result = shared[first + token, out_start : out_start + size]
        for distance in range(len(table)):
            for i in range(size):
                result[i] += by_distance[token, distance] * table[distance, i]


@njit(**fn.FAST)
def attend_all(tokens, layer, cross, sizes, first, last, scale, rotary, biases, table, scores, shared):
    """Attend with heads first to last of all tokens, whose keys and values are written to their caches before.

    cross: whether to an encoder's output instead.
    """
    layers, heads, size = sizes
    hidden_size, count = heads * size, len(tokens)
    for token in range(0 if cross else count):
        address, room, at = tokens[token, 0], tokens[token, 1], tokens[token, 2]
        cache = carray(fn.pointer(address), (layers, 2, heads, room // LANES, LANES * size), np.uint16)
        own = shared[token][2 * hidden_size :]
        for head in range(first, last):
            start = head * size
            keys = own[hidden_size + start : hidden_size + start + size]
            if len(rotary):
                fn.rotate(own[start : start + size], rotary[token])
                fn.rotate(keys, rotary[token])
            _append(cache[layer, :, head], at, size, keys, own[2 * hidden_size + start :])
    column = 4 if cross else 0
    table = table[: 0 if cross else len(table)]
    by_distance = np.empty((TILE_TOKENS, len(table)), np.float32)
    begin = 0
    while begin < count:
        address, room = tokens[begin, column], tokens[begin, column + 1]
        run = 1
        while run < TILE_TOKENS and begin + run < count and tokens[begin + run, 0] == tokens[begin, 0]:
            run += 1
        seen = tokens[begin : begin + run, 6 if cross else 3]
        for head in range(first, last):
            nbytes = 2 * room * size
            keys = address + ((2 * layer) * heads + head) * nbytes
            values = address + ((2 * layer + 1) * heads + head) * nbytes
            start, bias = 2 * hidden_size + head * size, biases[head, : 0 if cross else biases.shape[1]]
            _attend(
                keys, values, begin, seen, tokens[begin, 2], size, scale, bias, table, shared, start, head * size,
                scores, by_distance,
            )  # fmt: skip
        begin += run
