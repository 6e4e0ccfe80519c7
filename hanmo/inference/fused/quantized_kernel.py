"""Some tokens, of one row or several, through a decoder of int8 or int4 weights, which are read once.

Knows addresses and sizes; quantized_blocks.py says how weights are stored, attention_blocks.py how keys and values are.
All threads run `step`; each computes its outputs of every product, its heads of attention, and the norms of its part of
the tokens, or of few tokens all norms. A token's results depend neither on the number of threads nor on other tokens.

    x ─ in groups of 128 or 32 to 8 bits, a scale each ─► products with int8 or int4 ─► float32
"""

import numpy as np
from numba import njit

from hanmo.inference.fused import functions as fn
from hanmo.inference.fused import quantized_blocks as blocks
from hanmo.inference.fused.packing import BETWEEN, GROUP, LANES, NARROW, group_size
from hanmo.inference.fused.quantized_attention import TILE_TOKENS, attend_all

__all__ = ["step"]

CROSS, FEED_FORWARD = 1, 2
(_amx4_8, _amx8_8, _amx16_8), (_amx4_4, _amx8_4, _amx16_4) = (
    [blocks.amx(bits, tokens) for tokens in (4, 8, 16)] for bits in (8, 4)
)
_configure, _release = blocks.tiles
_group_size = njit(**fn.FAST)(group_size)


@njit(**fn.FAST)
def _quantize(x, count, bits, place, numbers, scales, shift):
    """Quantize the first `count` numbers of x, in groups, to a place among the inputs of a product."""
    size, zero = _group_size(count), np.int64(-128 if bits == 8 else -8)
    groups, at = count // size, 4 * place * (count // size)
    to = fn.address_of(numbers) + place * (count + BETWEEN)
    given = fn.address_of(x), groups, zero, to, fn.address_of(scales) + at, fn.address_of(shift) + at
    blocks.quantize(given) if size == GROUP else blocks.quantize_narrow(given)


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


def _untiled(group):
    (one_8, two_8, four_8), (one_4, two_4, four_4) = (
        [blocks.product(bits, tokens, group) for tokens in (1, 2, 4)] for bits in (8, 4)
    )

    @njit(**fn.FAST)
    def multiply(bits, rest, given):
        """Multiply a block by the next 1, 2 or 4 tokens; return their number."""
        if rest >= 4:
            four_8(given) if bits == 8 else four_4(given)
            return 4
        if rest >= 2:
            two_8(given) if bits == 8 else two_4(given)
            return 2
        one_8(given) if bits == 8 else one_4(given)
        return 1

    return multiply


_multiply, _multiply_narrow = _untiled(GROUP), _untiled(NARROW)


@njit(**fn.FAST)
def _product(layout, first, last, numbers, scales, shift, inputs, out, stride, tokens, tiles, scratch):
    """Multiply blocks of 16 outputs of a matrix, (bits, weights, scales, bias), by the quantized x of all tokens.

    out: the address of the first token's results.   stride: bytes between tokens.
    tiles: whether they are configured, for groups of 128; then results of up to 7 tokens behind the last are written
    too, if there are 4.
    scratch: 16 KiB, and the bytes of a block behind them.
    """
    bits, weights, row_scales, bias = layout
    group, size = _group_size(inputs), inputs * LANES * bits // 8
    groups, tiles = inputs // group, tiles and group == GROUP
    scales_size = 4 * LANES * (1 if bits == 8 else groups)
    page = (fn.address_of(scratch) + 4095) // 4096 * 4096
    x, x_scales, x_shift = fn.address_of(numbers), fn.address_of(scales), fn.address_of(shift)
    for block in range(first, last):
        own, scale, added = weights + block * size, row_scales + block * scales_size, bias + block * 4 * LANES
        to, wide = out + block * 4 * LANES, own
        if tiles and bits == 4 and tokens >= 4:
            wide = page + 8192
            blocks.unpack((own, size, wide, size))
        token = 0
        while token < tokens:
            at = token * groups
            given = (
                scale,
                added,
                x + token * (inputs + BETWEEN),
                x_scales + at * 4,
                x_shift + at * 4,
                groups,
                to + token * stride,
                stride,
            )
            if tiles and tokens - token >= 4:
                ahead = size if token == 0 and bits == 8 else 0
                token += _tiled(bits, tokens - token, (wide, *given, page, ahead))
            elif group == GROUP:
                token += _multiply(bits, tokens - token, (own, *given))
            else:
                token += _multiply_narrow(bits, tokens - token, (own, *given))


@njit(**fn.FAST)
def _activate(wide, gate, kind):
    """Activate a thread's part of the feed-forward of one token, times the gate's if there is one."""
    fn.activate(wide, kind)
    for i in range(len(gate)):
        wide[i] *= gate[i]


@fn.kernel(
    "void(int64, int64, int64[::1], float32[:, :, ::1], int8[:, ::1], float32[:, ::1], int32[:, ::1], "
    "int64[:, ::1], int64[::1], int64[:, ::1], int64[::1], "
    "UniTuple(int64, 6), float32, float32, float32, boolean, float32[:, ::1], float32[:, ::1], float32[:, ::1], "
    "uint8[::1], float32[:, ::1], float32[:, ::1])"
)
def step(
    thread, threads, counter, x, numbers, scales, shift, tokens, kept, layers, output, sizes, scale, eps, head_eps, rms,
    rotary, biases, table, tiles, shared, logits,
):  # fmt: skip
    """Run one thread's share of a step.

    counter: int64 [1], 0 before any thread begins.
    x: [1, tokens, hidden_size], embedded; overwritten. Norms and quantization are then divided among the threads by
    tokens; or [threads, tokens, hidden_size], and each thread computes all of them.
    numbers, scales, shift: scratch, a row for each x: room for the quantized numbers of all tokens, the wider input and
    BETWEEN bytes each, aligned to 64, and for a scale and a shift of each of their groups; with tiles, of a multiple of
    16 tokens.
    tokens: int64 [tokens, 7], of each (address of its row's cache, room, index, number of keys that it attends to;
    address of an encoder's keys and values, room, number). A cache is bfloat16 as uint16
    [layer, 2, heads, room / 16, 16 size]; keys and values are written at the index. Tokens of one row have indices that
    follow each other.
    kept: int64 [kept], the tokens whose logits are wanted.
    layers: int64 [sub-layer, 14], (bits, weights, scales, bias) of the matrix of its input (query_key_value; query;
    input or gate_input) and of its output; (weight, bias) of the norms before and after; kind (0 attention, 1 to
    an encoder's output, 2 feed-forward); layer.
    Addresses; 0 for missing norms.
    output: int64 [12], the same of the projection onto the vocabulary and of the transformation before it, each with 0
    bits for none, of the last norm and of the transformation's.
    sizes: (heads, size of a head, intermediate size, 2 if gated, activation, that of the transformation).
    head_eps: of the transformation's norm.   rms: whether norms are RMS norms.
    rotary: [tokens, size of a head], or [0, 0].   biases: T5's, [heads, distances to the left], or [heads, 0].
    table: NEZHA's, [distances, size of a head], that of the farthest key to the right first, or [0, 0].
    tiles: the configuration of the processor's tiles, [64], or [0] without.
    shared: float32 [tokens, 2 hidden_size + max(3 hidden_size, feed-forward, twice if gated) + 16], shared by threads;
    the last 16 are not used, so that tokens are in other lines of the cache; with tiles, of a multiple of 16 tokens, as
    logits.
    logits: float32 [kept, vocab], the vocabulary's size being a multiple of 16; without a projection, what it would
    multiply, [kept, hidden_size].
    """
    heads, size, inner, words, kind, head_kind = sizes
    hidden_size, count, tiled = heads * size, len(tokens), len(tiles) > 0
    if tiled:
        _configure((fn.address_of(tiles),))
    divided = len(x) == 1
    own = 0 if divided else thread
    x, numbers, scales, shift = x[own], numbers[own], scales[own], shift[own]
    begin, end = fn.share(count, thread, threads) if divided else (0, count)
    h = np.empty(hidden_size, np.float32)
    seen = max(tokens[:, 3].max(), tokens[:, 6].max())
    scores = np.empty((min(count, TILE_TOKENS), (seen + LANES - 1) // LANES * LANES), np.float32)
    scratch = np.empty(2 * 8192 + max(hidden_size, inner) * LANES, np.uint8)  # an array, as addresses do not keep it
    # Of each token in `shared`: attended, y, wide.
    stride = shared.shape[1] * 4
    y_at, wide_at = fn.address_of(shared) + hidden_size * 4, fn.address_of(shared) + 2 * hidden_size * 4
    head_blocks, barriers = size // LANES, 0
    for number in range(len(layers)):
        f = layers[number]
        for token in range(begin, end):
            fn.norm(x[token], f[8], f[9], eps, h, rms)
            _quantize(h, hidden_size, f[0], token, numbers, scales, shift)
        if divided:
            barriers = fn.barrier(counter, barriers, threads)
        # A thread computes what it needs of the input's product: its heads, or its part of the feed-forward.
        feeds = f[12] == FEED_FORWARD
        first, last = fn.share(inner // LANES if feeds else heads, thread, threads)
        each = np.int64(1) if feeds else head_blocks
        for word in range(words if feeds else 1 if f[12] == CROSS else 3):
            offset = word * (inner // LANES if feeds else heads)
            start, stop = (offset + first) * each, (offset + last) * each
            _product(
                fn.matrix(f, 0), start, stop, numbers, scales, shift, hidden_size, wide_at, stride, count, tiled,
                scratch,
            )  # fmt: skip
        if feeds:
            for token in range(count):
                wide = shared[token][2 * hidden_size :]
                gate = wide[inner + first * LANES : inner + last * LANES] if words > 1 else wide[:0]
                _activate(wide[first * LANES : last * LANES], gate, kind)
        else:
            shape = layers[:, 13].max() + 1, heads, size
            attend_all(tokens, f[13], f[12] == CROSS, shape, first, last, scale, rotary, biases, table, scores, shared)
        barriers = fn.barrier(counter, barriers, threads)
        inputs = inner if feeds else hidden_size
        for token in range(begin, end):
            _quantize(shared[token, 2 * hidden_size if feeds else 0 :], inputs, f[4], token, numbers, scales, shift)
        if divided:
            barriers = fn.barrier(counter, barriers, threads)
        first, last = fn.share(hidden_size // LANES, thread, threads)
        _product(fn.matrix(f, 1), first, last, numbers, scales, shift, inputs, y_at, stride, count, tiled, scratch)
        barriers = fn.barrier(counter, barriers, threads)
        for token in range(begin, end):
            fn.add_norm(x[token], shared[token, hidden_size : 2 * hidden_size], f[10], f[11], eps, rms)
    for place in range(len(kept)):
        if begin <= kept[place] < end:
            fn.norm(x[kept[place]], output[8], output[9], eps, h, rms)
            if output[0]:
                _quantize(h, hidden_size, output[4] or output[0], place, numbers, scales, shift)
            elif divided or thread == 0:
                logits[place] = h
    if divided:
        barriers = fn.barrier(counter, barriers, threads)
    if output[4]:
        first, last = fn.share(hidden_size // LANES, thread, threads)
        matrix = fn.matrix(output, 1)
        _product(matrix, first, last, numbers, scales, shift, hidden_size, wide_at, stride, len(kept), tiled, scratch)
        barriers = fn.barrier(counter, barriers, threads)
        first, last = fn.share(len(kept), thread, threads) if divided else (0, len(kept))
        for place in range(first, last):
            h[:] = shared[place, 2 * hidden_size : 3 * hidden_size]
            fn.activate(h, head_kind)
            fn.norm(h, output[10], output[11], head_eps, h)
            _quantize(h, hidden_size, output[0], place, numbers, scales, shift)
        if divided:
            barriers = fn.barrier(counter, barriers, threads)
    first, last = fn.share(logits.shape[1] // LANES, thread, threads)
    out, stride, matrix = fn.address_of(logits), logits.shape[1] * 4, fn.matrix(output, 0)
    if output[0]:
        _product(matrix, first, last, numbers, scales, shift, hidden_size, out, stride, len(kept), tiled, scratch)
    if tiled:
        _release((np.int64(0),))
    fn.barrier(counter, barriers, threads)
