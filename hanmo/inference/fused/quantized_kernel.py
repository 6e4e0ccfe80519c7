"""Some tokens, of one row or several, through a decoder of int8 or int4 weights, which are read once.

Knows addresses and sizes; quantized_blocks.py says how weights, keys and values are stored. All threads run `step` with
four barriers in a layer; each computes its outputs of every product, its heads of attention, and all norms. A token's
results depend neither on the number of threads nor on other tokens of the step.

    x ─ in groups of 128 to 8 bits, a scale each ─► products with int8 or int4 ─► float32
"""

import numpy as np
from numba import carray, njit

from hanmo.inference.fused import functions as fn
from hanmo.inference.fused import quantized_blocks as blocks
from hanmo.inference.fused.quantized_blocks import GROUP, LANES

__all__ = ["step"]

TILE_TOKENS = 16
(_amx4_8, _amx8_8, _amx16_8), (_amx4_4, _amx8_4, _amx16_4) = (
    [blocks.amx(bits, tokens) for tokens in (4, 8, 16)] for bits in (8, 4)
)
(_vnni1_8, _vnni2_8, _vnni4_8), (_vnni1_4, _vnni2_4, _vnni4_4) = (
    [blocks.vnni(bits, tokens) for tokens in (1, 2, 4)] for bits in (8, 4)
)
_configure, _release = blocks.tiles
_scores1, _scores4 = blocks.scores(1), blocks.scores(4)
_mix1, _mix4, _mix1_wide, _mix4_wide = (blocks.mix(tokens, vectors) for vectors in (1, 4) for tokens in (1, 4))


@njit(**fn.FAST)
def _quantize(x, bits, numbers, scales, shift):
    """Quantize x to 8 bits in groups; shift: what makes the weights unsigned, times the sum of a group, negated."""
    zero = np.float32(128.0 if bits == 8 else 8.0)
    for group in range(len(x) // GROUP):
        own = x[group * GROUP : (group + 1) * GROUP]
        most = np.float32(0.0)
        for i in range(GROUP):
            most = max(most, abs(own[i]))
        scales[group] = most / np.float32(127.0)
        factor = np.float32(127.0) / most if most > np.float32(0.0) else np.float32(0.0)
        total = np.float32(0.0)
        to = numbers[group * GROUP : (group + 1) * GROUP]
        for i in range(GROUP):
            near = np.rint(own[i] * factor)
            total += near
            to[i] = np.int8(near)
        shift[group] = np.int32(-zero * total)


@njit(**fn.FAST)
def _quantize_all(x, start, count, bits, numbers, scales, shift):
    """Quantize so many numbers of each token of x from `start` on, one token behind the other."""
    groups = count // GROUP
    for token in range(len(x)):
        first, last = token * groups, (token + 1) * groups
        own = x[token][start : start + count]
        _quantize(own, bits, numbers[first * GROUP : last * GROUP], scales[first:last], shift[first:last])


@njit(**fn.FAST)
def _tiled(bits, rest, given):
    """Multiply a block by the next 4, 8 or 16 tokens in tiles, of which `rest` count; return their number."""
    if rest > 8:
        _amx16_8(given) if bits == 8 else _amx16_4(given)
        return 16
    if rest > 4:
        _amx8_8(given) if bits == 8 else _amx8_4(given)
        return 8
    _amx4_8(given) if bits == 8 else _amx4_4(given)
    return 4


@njit(**fn.FAST)
def _untiled(bits, rest, given):
    """Multiply a block by the next 1, 2 or 4 tokens; return their number."""
    if rest >= 4:
        _vnni4_8(given) if bits == 8 else _vnni4_4(given)
        return 4
    if rest >= 2:
        _vnni2_8(given) if bits == 8 else _vnni2_4(given)
        return 2
    _vnni1_8(given) if bits == 8 else _vnni1_4(given)
    return 1


@njit(**fn.FAST)
def _product(layout, first, last, numbers, scales, shift, groups, out, stride, tokens, tiles, scratch):
    """Multiply blocks of 16 outputs of a matrix, (bits, weights, scales, bias), by the quantized x of all tokens.

    out: the address of the first token's results.   stride: bytes between tokens.
    tiles: whether they are configured; then results of up to 12 tokens behind the last are written too, if there are 4.
    scratch: address of 8 KiB, and of the bytes of a block behind it.
    """
    bits, weights, row_scales, bias = layout
    size = groups * GROUP * LANES * bits // 8
    scales_size = 4 * LANES * (1 if bits == 8 else groups)
    x, x_scales, x_shift = fn.address_of(numbers), fn.address_of(scales), fn.address_of(shift)
    for block in range(first, last):
        own, scale, added = weights + block * size, row_scales + block * scales_size, bias + block * 4 * LANES
        to, wide = out + block * 4 * LANES, own
        if tiles and bits == 4 and tokens >= 4:
            wide = scratch + 8192
            blocks.unpack((own, size, wide, size))
        token = 0
        while token < tokens:
            at = token * groups
            given = (
                scale,
                added,
                x + at * GROUP,
                x_scales + at * 4,
                x_shift + at * 4,
                groups,
                to + token * stride,
                stride,
            )
            if tiles and tokens - token >= 4:
                ahead = size if token == 0 and bits == 8 else 0
                token += _tiled(bits, tokens - token, (wide, *given, scratch, ahead))
            else:
                token += _untiled(bits, tokens - token, (own, *given))


@njit(**fn.FAST)
def _append(cache, at, size, keys, values):
    """Write a token's keys and values, float32 [size] each, to one layer's and head's cache [2, blocks, 16 size]."""
    block, place = at // LANES, at % LANES
    for i in range(size):
        cache[0, block, i // 2 * 2 * LANES + place * 2 + i % 2] = fn.to_bfloat16(keys[i])
        cache[1, block, place // 2 * 2 * size + 2 * i + place % 2] = fn.to_bfloat16(values[i])


@njit(**fn.FAST)
def _attend(keys, values, first, count, at, size, scale, shared, start, out_start, scores):
    """Attend from so many tokens of one row, the first at index `at`, to the keys up to each: softmax(q kᵀ · scale) v.

    keys, values: addresses.   shared: [tokens, width]; queries begin at `start`, results at `out_start`.
    scores: scratch, [16, keys].
    """
    stride, width = shared.shape[1] * 4, scores.shape[1] * 4
    q, out = fn.address_of(shared) + first * stride + start * 4, fn.address_of(shared) + first * stride + out_start * 4
    s = fn.address_of(scores)
    last = (at + count - 1) // LANES + 1
    token = 0
    while token < count:
        given = keys, q + token * stride, stride, size // 2, last, s + token * width, width
        if count - token >= 4:
            _scores4(given)
            token += 4
        else:
            _scores1(given)
            token += 1
    for token in range(count):
        own, seen = scores[token], at + token + 1
        padded = (seen + LANES - 1) // LANES * LANES
        most = np.float32(-np.inf)
        for i in range(seen):
            most = max(most, own[i] * scale)
        for i in range(padded):
            own[i] = fn.exp(own[i] * scale - most)
        own[seen : last * LANES] = np.float32(0.0)
        total = np.float32(0.0)
        for i in range(padded):
            total += own[i]
        for i in range(padded):
            own[i] /= total
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


@njit(**fn.FAST)
def _attend_all(tokens, layer, sizes, first, last, scale, scores, shared):
    """Write the keys and values of heads first to last of all tokens to their caches, then attend."""
    layers, heads, size = sizes
    hidden_size, count = heads * size, len(tokens)
    for token in range(count):
        address, room, at = tokens[token]
        cache = carray(fn.pointer(address), (layers, 2, heads, room // LANES, LANES * size), np.uint16)
        own = shared[token][3 * hidden_size :]
        for head in range(first, last):
            keys, values = own[head * size : (head + 1) * size], own[hidden_size + head * size :]
            _append(cache[layer, :, head], at, size, keys, values)
    begin = 0
    while begin < count:
        address, room, at = tokens[begin]
        run = 1
        while run < TILE_TOKENS and begin + run < count and tokens[begin + run, 0] == address:
            run += 1
        for head in range(first, last):
            nbytes = 2 * room * size
            keys = address + ((2 * layer) * heads + head) * nbytes
            values = address + ((2 * layer + 1) * heads + head) * nbytes
            start = 2 * hidden_size + head * size
            _attend(keys, values, begin, run, at, size, scale, shared, start, head * size, scores)
        begin += run


@fn.kernel(
    "void(int64, int64, int64[::1], float32[:, ::1], int64[:, ::1], int64[::1], int64[:, ::1], int64[::1], "
    "UniTuple(int64, 4), float32, float32, uint8[::1], float32[:, ::1], float32[:, ::1])"
)
def step(thread, threads, counter, x, tokens, kept, layers, output, sizes, scale, eps, tiles, shared, logits):
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.   x: [tokens, hidden_size], embedded; unchanged.
    tokens: int64 [tokens, 3], of each (address of its row's cache, room, index). A cache is bfloat16 as uint16
    [layer, 2, heads, room / 16, 16 size]; keys and values are written at the index, and those up to it are attended to.
    Tokens of one row have indices that follow each other.
    kept: int64 [kept], the tokens whose logits are wanted.
    layers: int64 [layer, 24], (bits, weights, scales, bias) of query_key_value, output, input, output; (weight, bias)
    of the norms before and after attention, before and after the feed-forward. Addresses; 0 for missing norms.
    output: int64 [6], the same of the projection onto the vocabulary and of the last norm.
    sizes: (heads, size of a head, intermediate size, kind of activation as in `activate`).
    tiles: the configuration of the processor's tiles, [64], or [0] without.
    shared: float32 [tokens, 2 hidden_size + max(3 hidden_size, feed-forward)], shared by threads; with tiles, of a
    multiple of 16 tokens, as logits.
    logits: float32 [kept, vocab], the vocabulary's size being a multiple of 16.
    """
    heads, size, inner, kind = sizes
    hidden_size, count, tiled = heads * size, len(x), len(tiles) > 0
    if tiled:
        _configure((fn.address_of(tiles),))
    x = x.copy()
    most, room = max(hidden_size, inner), (count + TILE_TOKENS - 1) // TILE_TOKENS * TILE_TOKENS
    h = np.empty((count, hidden_size), np.float32)
    numbers = np.empty(room * most, np.int8)
    scales = np.zeros(room * most // GROUP, np.float32)
    shift = np.zeros(room * most // GROUP, np.int32)
    scores = np.empty((min(count, TILE_TOKENS), (tokens[:, 2].max() // LANES + 1) * LANES), np.float32)
    buffer = np.empty(2 * 8192 + most * LANES, np.uint8)
    scratch = (fn.address_of(buffer) + 4095) // 4096 * 4096
    # Of each token in `shared`: attended, y, wide.
    stride = shared.shape[1] * 4
    y_at, wide_at = fn.address_of(shared) + hidden_size * 4, fn.address_of(shared) + 2 * hidden_size * 4
    groups, head_blocks = hidden_size // GROUP, size // LANES
    barriers = 0
    for layer in range(len(layers)):
        f = layers[layer]
        # Attention: queries, keys and values of this thread's heads, which no other thread needs.
        for token in range(count):
            fn.norm(x[token], f[16], f[17], eps, h[token])
        _quantize_all(h, np.int64(0), hidden_size, f[0], numbers, scales, shift)
        first, last = fn.share(heads, thread, threads)
        for word in range(3):
            start, stop = (word * heads + first) * head_blocks, (word * heads + last) * head_blocks
            _product(
                fn.matrix(f, 0), start, stop, numbers, scales, shift, groups, wide_at, stride, count, tiled, scratch
            )
        _attend_all(tokens, layer, (len(layers), heads, size), first, last, scale, scores, shared)
        barriers = fn.barrier(counter, barriers, threads)
        _quantize_all(shared[:count], np.int64(0), hidden_size, f[4], numbers, scales, shift)
        first, last = fn.share(hidden_size // LANES, thread, threads)
        _product(fn.matrix(f, 1), first, last, numbers, scales, shift, groups, y_at, stride, count, tiled, scratch)
        barriers = fn.barrier(counter, barriers, threads)
        for token in range(count):
            fn.add_norm(x[token], shared[token][hidden_size : 2 * hidden_size], f[18], f[19], eps)
            # Feed-forward.
            fn.norm(x[token], f[20], f[21], eps, h[token])
        _quantize_all(h, np.int64(0), hidden_size, f[8], numbers, scales, shift)
        first, last = fn.share(inner // LANES, thread, threads)
        _product(fn.matrix(f, 2), first, last, numbers, scales, shift, groups, wide_at, stride, count, tiled, scratch)
        for token in range(count):
            wide = shared[token][2 * hidden_size + first * LANES : 2 * hidden_size + last * LANES]
            for i in range(len(wide)):
                wide[i] = fn.activate(wide[i], kind)
        barriers = fn.barrier(counter, barriers, threads)
        _quantize_all(shared[:count], 2 * hidden_size, inner, f[12], numbers, scales, shift)
        first, last = fn.share(hidden_size // LANES, thread, threads)
        _product(
            fn.matrix(f, 3), first, last, numbers, scales, shift, inner // GROUP, y_at, stride, count, tiled, scratch
        )
        barriers = fn.barrier(counter, barriers, threads)
        for token in range(count):
            fn.add_norm(x[token], shared[token][hidden_size : 2 * hidden_size], f[22], f[23], eps)
    for place in range(len(kept)):
        fn.norm(x[kept[place]], output[4], output[5], eps, h[place])
    _quantize_all(h[: len(kept)], np.int64(0), hidden_size, output[0], numbers, scales, shift)
    first, last = fn.share(logits.shape[1] // LANES, thread, threads)
    out, stride = fn.address_of(logits), logits.shape[1] * 4
    _product(fn.matrix(output, 0), first, last, numbers, scales, shift, groups, out, stride, len(kept), tiled, scratch)
    if tiled:
        _release((np.int64(0),))
    fn.barrier(counter, barriers, threads)
