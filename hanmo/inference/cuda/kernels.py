# mypy: ignore-errors
"""Three Triton kernels for decode steps of few rows: a linear layer that reads its weights once, attention, and norms.

All sum in float32. A step at batch size 1 takes the time to read its weights, plus some microseconds a kernel: so what
follows a product (scale, bias, activation, residual) is computed in the same kernel, and on Hopper each kernel of a
single row starts while the one before it ends and reads its weights meanwhile (programmatic dependent launch).
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

ACTIVATIONS = ("linear", "relu", "silu", "gelu_erf", "gelu_tanh")
MOST_ROWS = 64
SINGLE = {"BLOCK_N": 2, "BLOCK_K": 1024, "num_warps": 2}  # products of one row
TILE = {"BLOCK_N": 16, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}  # of several
ATTEND = {"BLOCK": 128, "num_warps": 8}


def linear(
    x: Tensor,
    weights: list[Tensor],
    scales: list[Tensor] | None,
    biases: list[Tensor] | None,
    *,
    activation: str = "linear",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute `residual + act(scale * (x Wᵀ) + bias)` for one matrix, or for three of one size at once.

    x: [rows, in], at most MOST_ROWS.   weights: [out, in] each, contiguous, x's dtype or int8.   scales, biases: [out].
    residual: [rows, out].   activation: one of ACTIVATIONS.   Returns [matrices, rows, out] in x's dtype.
    """
    x = x.contiguous()
    rows, k = x.shape
    n = len(weights[0])
    out = x.new_empty(len(weights), rows, n)
    if rows == 1:
        sizes = {"ROWS": 1, **SINGLE, "BLOCK_K": min(SINGLE["BLOCK_K"], triton.next_power_of_2(k))}
    else:
        sizes = {"ROWS": max(16, triton.next_power_of_2(rows)), **TILE}
    tensors = [x, out, x if residual is None else residual.contiguous()]
    tensors += [*_three(weights), *_three(scales or [x]), *_three(biases or [x])]
    flags = {"SCALED": scales is not None, "BIASED": biases is not None, "RESIDUAL": residual is not None}
    options = {"enable_fp_fusion": True, **_early(x)}
    grid = triton.cdiv(n, sizes["BLOCK_N"]), len(weights)
    _linear[grid](*tensors, rows, n, k, ACTIVATION=activation, **flags, **sizes, **options)
    return out


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, epsilon: float, centered: bool) -> Tensor:
    """Apply a layer norm, or an RMS norm if not centered: x [rows, size] → the same shape.   weight, bias: [size]."""
    x = x.contiguous()
    rows, size = x.shape
    out = torch.empty_like(x)
    flags = {"SCALED": weight is not None, "BIASED": bias is not None, "CENTERED": centered}
    options = {"WIDTH": triton.next_power_of_2(size), "num_warps": 4, **_early(x)}
    _norm[rows,](
        x, out, x if weight is None else weight, x if bias is None else bias, size, epsilon, **flags, **options
    )
    return out


def _early(x: Tensor) -> dict[str, bool]:
    """Return the options by which a kernel starts before the one before it ends; with several rows that is slower."""
    early = x.is_cuda and len(x) == 1 and _has_dependent_launch(x.device)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@cache
def _has_dependent_launch(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0) and hasattr(tl.extra.cuda, "gdc_wait")


def attend(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slot: Tensor, *, scale: float
) -> Tensor:
    """Write a new key and value of each row to the cache and attend to all columns up to them.

    query, key, value: [rows, heads * d].   keys, values: [rows, heads, columns, d], views of one layout.
    slot: [rows], the columns of the new ones.   Returns [rows, heads * d].
    """
    rows, heads, _, d = keys.shape
    out = torch.empty_like(query)
    tensors = query, key, value, keys, values, out, slot
    options = {"DIM": triton.next_power_of_2(d), "enable_fp_fusion": True, **ATTEND, **_early(query)}
    _attend[rows, heads](*tensors, scale, keys.stride(0), keys.stride(1), d, **options)
    return out


def _three(tensors: list[Tensor]) -> list[Tensor]:
    return tensors if len(tensors) == 3 else tensors[:1] * 3


@triton.jit
def _linear(
    x,
    out,
    residual,
    weight,
    weight_1,
    weight_2,
    scale,
    scale_1,
    scale_2,
    bias,
    bias_1,
    bias_2,
    rows,
    n,
    k,
    ACTIVATION: constexpr,
    SCALED: constexpr,
    BIASED: constexpr,
    RESIDUAL: constexpr,
    ROWS: constexpr,
    BLOCK_N: constexpr,
    BLOCK_K: constexpr,
    EARLY: constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    which = tl.program_id(1)
    if which == 1:
        weight, scale, bias = weight_1, scale_1, bias_1
    if which == 2:
        weight, scale, bias = weight_2, scale_2, bias_2
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if ROWS == 1:
        total = _product_of_row(x, weight, column, n, k, BLOCK_N, BLOCK_K, EARLY)
    else:
        total = _product_of_rows(x, weight, row, column, rows, n, k, ROWS, BLOCK_N, BLOCK_K, EARLY)
    if SCALED:
        total *= tl.load(scale + column, column < n, other=0).to(tl.float32)[None, :]
    if BIASED:
        total += tl.load(bias + column, column < n, other=0).to(tl.float32)[None, :]
    total = _activate(total, ACTIVATION)
    place = row[:, None] * n + column[None, :]
    inside = (row < rows)[:, None] & (column < n)[None, :]
    if RESIDUAL:
        total += tl.load(residual + place, inside, other=0).to(tl.float32)
    tl.store(out + which * rows * n + place, total.to(out.dtype.element_ty), inside)


@triton.jit
def _product_of_row(x, weight, column, n, k, BLOCK_N: constexpr, BLOCK_K: constexpr, EARLY: constexpr):
    """Multiply one row; its first weights are read while the kernel before ends, the next ones ahead of their use."""
    inside, lane = (column < n)[:, None], tl.arange(0, BLOCK_K)
    parts = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    w = tl.load(weight + column[:, None] * k + lane[None, :], inside & (lane < k)[None, :], other=0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    for start in range(0, k, BLOCK_K):
        at = start + lane
        given = tl.load(x + at, at < k, other=0)
        parts += w.to(tl.float32) * given.to(tl.float32)[None, :]
        at += BLOCK_K
        w = tl.load(weight + column[:, None] * k + at[None, :], inside & (at < k)[None, :], other=0)
    return tl.sum(parts, 1)[None, :]


@triton.jit
def _product_of_rows(
    x, weight, row, column, rows, n, k, ROWS: constexpr, BLOCK_N: constexpr, BLOCK_K: constexpr, EARLY: constexpr
):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    lane = tl.arange(0, BLOCK_K)
    for start in range(0, k, BLOCK_K):
        at = start + lane
        w = tl.load(weight + column[None, :] * k + at[:, None], (column < n)[None, :] & (at < k)[:, None], other=0)
        given = tl.load(x + row[:, None] * k + at[None, :], (row < rows)[:, None] & (at < k)[None, :], other=0)
        total = tl.dot(given, w.to(given.dtype), total)
    return total


@triton.jit
def _activate(x, ACTIVATION: constexpr):
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "silu":
        x *= tl.sigmoid(x)
    elif ACTIVATION == "gelu_erf":
        x *= 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(y)) / 2 = sigmoid(2 y)
        x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x


@triton.jit
def _norm(
    x,
    out,
    weight,
    bias,
    size,
    epsilon,
    SCALED: constexpr,
    BIASED: constexpr,
    CENTERED: constexpr,
    WIDTH: constexpr,
    EARLY: constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = tl.arange(0, WIDTH)
    place, inside = tl.program_id(0) * size + at, at < size
    given = tl.load(x + place, inside, other=0).to(tl.float32)
    if CENTERED:
        given = tl.where(inside, given - tl.sum(given, 0) / size, 0)
    given *= tl.rsqrt(tl.sum(given * given, 0) / size + epsilon)
    if SCALED:
        given *= tl.load(weight + at, inside, other=0).to(tl.float32)
    if BIASED:
        given += tl.load(bias + at, inside, other=0).to(tl.float32)
    tl.store(out + place, given.to(out.dtype.element_ty), inside)


@triton.jit
def _attend(
    query,
    key,
    value,
    keys,
    values,
    out,
    slot,
    scale,
    row_stride,
    head_stride,
    d,
    DIM: constexpr,
    BLOCK: constexpr,
    EARLY: constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, head = tl.program_id(0), tl.program_id(1)
    end = tl.load(slot + row).to(tl.int32)
    e = tl.arange(0, DIM)
    here = (row * tl.num_programs(1) + head) * d + e
    keys += row.to(tl.int64) * row_stride + head * head_stride
    values += row.to(tl.int64) * row_stride + head * head_stride
    q = tl.load(query + here, e < d, other=0).to(tl.float32) * scale
    new_key = tl.load(key + here, e < d, other=0)
    new_value = tl.load(value + here, e < d, other=0)
    tl.store(keys + end * d + e, new_key, e < d)
    tl.store(values + end * d + e, new_value, e < d)
    # The new token comes first, from registers: what was just stored may not be readable yet.
    highest = tl.sum(q * new_key.to(tl.float32), 0)
    weight = highest * 0 + 1
    total = new_value.to(tl.float32)
    for start in range(0, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        place, inside = at[:, None] * d + e[None, :], (at < end)[:, None] & (e < d)[None, :]
        scores = tl.sum(tl.load(keys + place, inside, other=0).to(tl.float32) * q[None, :], 1)
        scores = tl.where(at < end, scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, 0))
        shrink, powers = tl.exp(highest - above), tl.exp(scores - above)
        v = tl.load(values + place, inside, other=0).to(tl.float32)
        total = total * shrink + tl.sum(powers[:, None] * v, 0)
        weight = weight * shrink + tl.sum(powers, 0)
        highest = above
    tl.store(out + here, (total / weight).to(out.dtype.element_ty), e < d)
