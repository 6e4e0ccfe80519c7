"""The functions of Keras 2's backend, `K`, written in torch; Keras 3's `keras.backend` has almost none of them.

Names, arguments and results are those of Keras 2.3. Each takes what `lifting` says; x and y are tensors, axis may be a
list where Keras 2 let it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hanmo.compat.bert4keras.graph.lifting import FUNCTIONS, lift

__all__ = ["FUNCTIONS"]


def _axes(x: Tensor, axis: Any) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    return tuple(axis) if isinstance(axis, list | tuple) else (axis,)


def _dtype(name: str | None = None) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name or keras.config.floatx())
    return dtype


def _float(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(_dtype())


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple(-1 if each is None else int(each) for each in shape)


def _new(shape: Any, dtype: str | None = None) -> Tensor:
    """Return a tensor of any values on Keras's device."""
    return torch.empty(_sizes(shape), dtype=_dtype(dtype), device=keras.ops.zeros(()).device)


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Give a number the dtype of the other argument."""
    like = x if isinstance(x, Tensor) else y if isinstance(y, Tensor) else _new(())
    x, y = (each if isinstance(each, Tensor) else torch.as_tensor(each).to(like) for each in (x, y))
    return x, y


def _inside(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(keras.config.epsilon(), 1 - keras.config.epsilon())


def _reduction(reduce: Callable[..., Tensor], *, floats: bool = False) -> Callable[..., Tensor]:
    return lambda x, axis=None, keepdims=False: reduce(_float(x) if floats else x, _axes(x, axis), keepdim=keepdims)


_TABLE: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in "abs cos exp log round sigmoid sign sin square tan tanh".split()},
    "sqrt": lambda x: x.clamp(min=0).sqrt(),
    "pow": lambda x, a: torch.pow(*_pair(x, a)),
    "clip": lambda x, min_value, max_value: torch.clamp(x, min_value, max_value),
    "maximum": lambda x, y: torch.maximum(*_pair(x, y)),
    "minimum": lambda x, y: torch.minimum(*_pair(x, y)),
    "equal": lambda x, y: torch.eq(*_pair(x, y)),
    "not_equal": lambda x, y: torch.ne(*_pair(x, y)),
    "greater": lambda x, y: torch.gt(*_pair(x, y)),
    "greater_equal": lambda x, y: torch.ge(*_pair(x, y)),
    "less": lambda x, y: torch.lt(*_pair(x, y)),
    "less_equal": lambda x, y: torch.le(*_pair(x, y)),
    # Reductions
    "sum": _reduction(torch.sum),
    "mean": _reduction(torch.mean, floats=True),
    "max": _reduction(torch.amax),
    "min": _reduction(torch.amin),
    "any": _reduction(torch.any),
    "all": _reduction(torch.all),
    "logsumexp": _reduction(torch.logsumexp, floats=True),
    "var": _reduction(functools.partial(torch.var, correction=0), floats=True),
    "std": _reduction(functools.partial(torch.std, correction=0), floats=True),
    "argmax": lambda x, axis=-1: x.argmax(axis),
    "argmin": lambda x, axis=-1: x.argmin(axis),
    "cumsum": lambda x, axis=0: x.cumsum(axis),
    "cumprod": lambda x, axis=0: x.cumprod(axis),
    # Shapes
    "ndim": lambda x: len(x.shape),
    "transpose": lambda x: x.permute(*reversed(range(x.ndim))),
    "permute_dimensions": lambda x, pattern: x.permute(*pattern),
    "concatenate": lambda tensors, axis=-1: torch.cat(list(tensors), axis),
    "stack": lambda x, axis=0: torch.stack(list(x), axis),
    "expand_dims": lambda x, axis=-1: x.unsqueeze(axis),
    "squeeze": lambda x, axis: x.squeeze(axis),
    "repeat_elements": lambda x, rep, axis: x.repeat_interleave(int(rep), axis),
    "repeat": lambda x, n: x[:, None].expand(-1, int(n), -1),
    "tile": lambda x, n: torch.tile(x, _sizes(n if isinstance(n, list | tuple) else (n,))),
    "reverse": lambda x, axes: x.flip(_axes(x, axes)),
    "batch_flatten": lambda x: x.flatten(1),
    "temporal_padding": lambda x, padding=(1, 1): F.pad(x, (0, 0, *_sizes(padding))),
    # New tensors
    "cast": lambda x, dtype: x.to(_dtype(dtype)) if isinstance(x, Tensor) else keras.ops.convert_to_tensor(x, dtype),
    "cast_to_floatx": lambda x: keras.ops.convert_to_tensor(x, keras.config.floatx()),
    "zeros_like": lambda x, dtype=None, name=None: torch.zeros_like(x, dtype=dtype and _dtype(dtype)),
    "ones_like": lambda x, dtype=None, name=None: torch.ones_like(x, dtype=dtype and _dtype(dtype)),
    "identity": lambda x, name=None: x.clone(),
    "stop_gradient": lambda variables: keras.tree.map_structure(torch.detach, variables),
    "zeros": lambda shape, dtype=None, name=None: _new(shape, dtype).zero_(),
    "ones": lambda shape, dtype=None, name=None: _new(shape, dtype).fill_(1),
    "eye": lambda size, dtype=None, name=None: torch.eye(int(size)).to(_new((), dtype)),
    "random_normal": lambda shape, mean=0.0, stddev=1.0, dtype=None, seed=None: _new(shape, dtype).normal_(
        mean, stddev
    ),
    "random_uniform": lambda shape, minval=0.0, maxval=1.0, dtype=None, seed=None: _new(shape, dtype).uniform_(
        minval, maxval
    ),
    "random_binomial": lambda shape, p=0.0, dtype=None, seed=None: _new(shape, dtype).bernoulli_(p),
    # Layers' parts
    "dot": lambda x, y: torch.tensordot(x, y, dims=([-1], [max(y.ndim - 2, 0)])),
    "gather": lambda reference, indices: reference[torch.as_tensor(indices).long()],
    "bias_add": lambda x, bias, data_format=None: x + bias,
    "softmax": lambda x, axis=-1: x.softmax(axis),
    "softplus": lambda x: F.softplus(x),
    "softsign": lambda x: F.softsign(x),
    "elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "dropout": lambda x, level, noise_shape=None, seed=None: F.dropout(x, level),
    "in_top_k": lambda predictions, targets, k: keras.ops.in_top_k(targets.long(), predictions, k),
}
for _name, _function in _TABLE.items():
    lift(_function, _name)


@lift
def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Multiply elements; of a list of sizes, the result is an int."""
    if isinstance(x, list | tuple):
        return math.prod(int(each) for each in x)
    for each in sorted((dim % x.ndim for dim in _axes(x, axis)), reverse=True):
        x = x.prod(each, keepdim=keepdims)
    return x


@lift
def batch_dot(x: Tensor, y: Tensor, axes: Any = None) -> Tensor:
    """Contract an axis of x and one of y, for each row of the batch; the result has at least two axes."""
    if axes is None:
        axes = x.ndim - 1, max(y.ndim - 2, 1)
    first, second = (axes, axes) if isinstance(axes, int) else axes
    left, right = [*range(x.ndim)], [0, *range(x.ndim, x.ndim + y.ndim - 1)]
    right[second] = left[first]
    rest = [axis for axis in left if axis != left[first]] + [axis for axis in right if axis >= x.ndim]
    result = torch.einsum(x, left, y, right, rest)
    return result if result.ndim > 1 else result[:, None]


@lift
def one_hot(indices: Tensor, num_classes: Any) -> Tensor:
    """Return ones at the indices, which may be floats; an index out of range gives zeros."""
    return (indices.long()[..., None] == torch.arange(int(num_classes), device=indices.device)).to(_dtype())


@lift
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: str = "int32") -> Tensor:
    start, stop = (0, start) if stop is None else (start, stop)
    return torch.arange(start, stop, step).to(_new((), dtype))


@lift
def constant(value: Any, dtype: str | None = None, shape: Any = None, name: str | None = None) -> Tensor:
    made = torch.as_tensor(np.asarray(value)).to(_new((), dtype))
    return made if shape is None else made.expand(_sizes(shape))


@lift
def where(cond: Any, x: Any, y: Any) -> Tensor:
    """Choose by a condition; shapes are broadcast, and a number takes the other argument's dtype."""
    return torch.where(torch.as_tensor(cond).bool(), *_pair(x, y))


@lift
def switch(condition: Any, then_expression: Any, else_expression: Any) -> Any:
    """Choose by a condition; expressions may be functions without arguments."""
    then, other = (each() if callable(each) else each for each in (then_expression, else_expression))
    if isinstance(condition, bool | int):
        return then if condition else other
    for _ in range(getattr(then, "ndim", 0) - condition.ndim):
        condition = condition[..., None]
    return where(condition, then, other)


@lift
def relu(x: Tensor, alpha: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Tensor:
    return torch.where(x >= threshold, x, alpha * (x - threshold)).clamp(
        max=math.inf if max_value is None else max_value
    )


@lift
def l2_normalize(x: Tensor, axis: Any = None) -> Tensor:
    return x * torch.rsqrt(x.square().sum(_axes(x, axis), keepdim=True).clamp(min=1e-12))


@lift
def categorical_crossentropy(target: Tensor, output: Tensor, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Return the cross-entropy over an axis; probabilities are normalized, then kept epsilon away from 0 and 1."""
    if from_logits:
        return -(target * output.log_softmax(axis)).sum(axis)
    return -(target * _inside(output / output.sum(axis, keepdim=True)).log()).sum(axis)


@lift
def sparse_categorical_crossentropy(
    target: Tensor, output: Tensor, from_logits: bool = False, axis: int = -1
) -> Tensor:
    """Return the cross-entropy for numbers of classes; probabilities are kept epsilon away from 0, then normalized."""
    output = output.movedim(axis, -1)
    chosen = target.reshape(output.shape[:-1]).long()[..., None]
    if from_logits:
        return output.logsumexp(-1) - output.gather(-1, chosen)[..., 0]
    output = _inside(output)
    return output.sum(-1).log() - output.gather(-1, chosen)[..., 0].log()


@lift
def binary_crossentropy(target: Tensor, output: Tensor, from_logits: bool = False) -> Tensor:
    target, small = target.to(output.dtype), keras.config.epsilon()
    if from_logits:
        return F.binary_cross_entropy_with_logits(output, target, reduction="none")
    output = _inside(output)
    return -(target * (output + small).log() + (1 - target) * (1 - output + small).log())


@lift
def rnn(
    step_function: Callable[..., tuple[Tensor, list[Tensor]]],
    inputs: Tensor,
    initial_states: list[Tensor],
    go_backwards: bool = False,
    mask: Tensor | None = None,
    constants: Sequence[Tensor] | None = None,
    unroll: bool = False,
    input_length: int | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run a step function over axis 1: the last output, all outputs [b, n, …] and the last states.

    Where mask [b, n] is False, the states and the output stay those of the position before; the first output is 0.
    """
    states, outputs = list(initial_states), [torch.zeros(())]
    places = range(inputs.shape[1])
    for place in reversed(places) if go_backwards else places:
        output, new = step_function(inputs[:, place], [*states, *(constants or ())])
        if mask is not None:
            kept = mask[:, place].bool().reshape(-1, *[1] * (output.ndim - 1))
            output = torch.where(kept, output, outputs[-1].to(output))
            new = [torch.where(kept, after, before) for after, before in zip(new, states, strict=True)]
        states = list(new)
        outputs.append(output)
    return outputs[-1], torch.stack(outputs[1:], 1), states
