"""One AdaFactor update of one large matrix on a CPU, each pass one compiled loop, divided among torch's threads.

`update_tensor` starts some forty operations for each block of a matrix, most of them for the noise of bfloat16 weights;
one loop takes a sixth of their time.
"""

import itertools
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hanmo.kernels.cache import load
from hanmo.training.distributed import is_sharded
from hanmo.training.optim.adafactor_update import Blocks, Numbers, Rule, update_factors, update_tensor


def can_fuse(parameter: Tensor, grad: Tensor, rule: Rule, blocks: Blocks) -> bool:
    """Whether `fused_update` supports a parameter: factored matrices of several blocks, without momentum."""
    return (
        parameter.device.type == "cpu"
        and parameter.ndim == 2
        and rule.axes is not None
        and not rule.beta1
        and len(blocks) > 1
        and not is_sharded(parameter)
        and grad.dtype == parameter.dtype
        and grad.stride() == parameter.stride()
        and (parameter.is_contiguous() or parameter.T.is_contiguous())
        and not (parameter.data_ptr() | grad.data_ptr()) % parameter.itemsize
        and loops() is not None
    )


def fused_update(
    parameter: Tensor,
    grad: Tensor,
    moments: tuple[Tensor, ...],
    momentum: Tensor | None,
    numbers: Numbers,
    *,
    rule: Rule,
    blocks: Blocks,
) -> Tensor | None:
    """Do what `update_tensor` does, up to the order of its sums; the noise of bfloat16 weights is the same."""
    kernel = loops()
    assert kernel is not None
    transposed = not parameter.is_contiguous()
    weight_rows, grad_rows = (_rows(tensor.T if transposed else tensor) for tensor in (parameter, grad))
    sums = [torch.zeros_like(moment) for moment in moments]
    row_sums, column_sums = _vectors(sums, transposed)
    column_sums += np.sum(_share(kernel.sums_of_squares, grad_rows, row_sums), axis=0)
    norm = sums[0].sum().sqrt()
    if rule.guarded and not math.isfinite(norm):
        return update_tensor(parameter, grad, moments, momentum, numbers, rule=rule, blocks=blocks)
    factors = _vectors(update_factors(parameter, sums, moments, numbers.beta2, rule), transposed)
    joint_eps = np.float32(rule.eps1 if rule.joint_eps else -1)
    factor = float(numbers.lr)
    if rule.parameter_scale:
        square = sum(_share(kernel.sum_of_squares, weight_rows))
        factor *= max(math.sqrt(square / parameter.numel()), rule.eps2)
    if rule.clip is not None:
        square = sum(_share(kernel.sum_of_squared_updates, grad_rows, *factors, joint_eps))
        factor /= max(1.0, math.sqrt(square / parameter.numel()) / rule.clip)
    keys = np.array([int(key) for key in numbers.keys] or [0] * len(blocks), np.int32).view(np.uint32)
    last = np.float32(float(numbers.kept)), np.float32(factor), keys, blocks.length
    _share(kernel.update, grad_rows, weight_rows, *factors, joint_eps, *last)
    return norm if rule.guarded else None


@cache
def loops() -> ModuleType | None:
    """Import the loops, compiled; None where Numba is missing."""
    if sys.byteorder != "little":
        return None
    try:
        return load("hanmo.training.optim.adafactor_kernel")
    except ImportError:
        return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="adafactor")


def _share(loop: Callable[..., Any], matrix: NDArray[Any], *rest: Any) -> list[Any]:
    """Call a loop for equal ranges of a matrix's rows, one for each thread of torch; return the results in order."""
    threads = min(torch.get_num_threads(), len(matrix))
    bounds = [len(matrix) * number // threads for number in range(threads + 1)]
    ranges = list(itertools.pairwise(bounds))
    if threads == 1:
        return [loop(matrix, *ranges[0], *rest)]
    return list(_pool(threads).map(lambda some: loop(matrix, *some, *rest), ranges))


def _rows(matrix: Tensor) -> NDArray[Any]:
    """View a row-major matrix as an array, one of bfloat16 as its bits."""
    matrix = matrix.detach()
    return (matrix.view(torch.uint16) if matrix.dtype == torch.bfloat16 else matrix).numpy()


def _vectors(pair: Any, transposed: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """View two vectors, of rows and of columns, as flat arrays; of columns and of rows if the matrix is transposed."""
    first, second = (tensor.flatten().numpy() for tensor in pair)
    return (second, first) if transposed else (first, second)
