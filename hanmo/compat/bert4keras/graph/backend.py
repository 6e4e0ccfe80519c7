"""bert4keras.backend over Keras 3: its own functions, and `K`, the functions of Keras 2's backend.

Formulas are those of bert4keras 0.11.5.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import keras
import numpy as np
import torch
from array_api_compat import torch as xp
from keras import KerasTensor
from torch.nn import functional as F

from hanmo.compat.bert4keras import task_layers
from hanmo.compat.bert4keras._absent import TENSORFLOW_ALONE, absent
from hanmo.compat.bert4keras.configs import get_weights_dtype as get_weights_dtype
from hanmo.compat.bert4keras.configs import set_gelu as set_gelu
from hanmo.compat.bert4keras.configs import set_weights_dtype as set_weights_dtype
from hanmo.compat.bert4keras.graph import functions
from hanmo.compat.bert4keras.graph.gradients import function, gradients, in_train_phase, learning_phase
from hanmo.compat.bert4keras.graph.gradients import search_layer as search_layer
from hanmo.compat.bert4keras.graph.lifting import FUNCTIONS, lift, tensor
from hanmo.errors import Unsupported
from hanmo.nn import position

is_tf_keras = 0
do_recompute = 0


# Of Variables and their values


def eval(x: Any) -> Any:
    """Return a copy as a NumPy array."""
    return keras.ops.convert_to_numpy(tensor(x))[()]


def set_value(x: Any, value: Any) -> None:
    update(x, value)


def batch_get_value(tensors: Iterable[Any]) -> list[Any]:
    return [eval(each) for each in tensors]


def batch_set_value(tuples: Iterable[tuple[Any, Any]]) -> None:
    for x, value in tuples:
        update(x, value)


def update(x: Any, new_x: Any) -> Any:
    """Write a value into a Variable or a tensor, and return it."""
    if isinstance(x, keras.Variable):
        x.assign(new_x)
    else:
        x.copy_(keras.ops.convert_to_tensor(new_x))
    return x


def update_add(x: Any, increment: Any) -> Any:
    return update(x, x + increment)


def update_sub(x: Any, decrement: Any) -> Any:
    return update(x, x - decrement)


def moving_average_update(x: Any, value: Any, momentum: float) -> Any:
    return update(x, x * momentum + value * (1 - momentum))


def variable(value: Any, dtype: str | None = None, name: str | None = None, constraint: Any = None) -> Any:
    return keras.Variable(np.asarray(value), dtype=dtype or keras.config.floatx(), name=name)


def placeholder(
    shape: Any = None, ndim: int | None = None, dtype: str | None = None, sparse: bool = False, name: str | None = None
) -> KerasTensor:
    return keras.Input(batch_shape=shape or (None,) * (ndim or 0), dtype=dtype, name=name)


def int_shape(x: Any) -> tuple[int | None, ...]:
    return tuple(x.shape)


def dtype(x: Any) -> str:
    return str(keras.backend.standardize_dtype(x.dtype))


# Of tensors


@lift
def reshape(tensor: Any, *args: Any) -> Any:
    """Reshape to args[0]; or axis args[1] to the shape args[0], axis args[3] to args[2], and so on."""
    if len(args) == 1:
        return tensor.reshape([-1 if size is None else int(size) for size in args[0]])
    sizes: list[Any] = [[size] for size in tensor.shape]
    for shape, axis in zip(args[::2], args[1::2], strict=True):
        rest = math.prod(size for size in shape if size != -1)
        sizes[axis] = [tensor.shape[axis] // rest if size == -1 else size for size in shape]
    return tensor.reshape([size for some in sizes for size in some])


@lift
def flatten(tensor: Any, start: int | None = None, end: int | None = None) -> Any:
    """Join the axes from start up to end, without it."""
    return tensor.flatten(start or 0, -1 if end is None else end - 1)


@lift
def align(tensor: Any, axes: Sequence[int], ndim: int | None = None) -> Any:
    """Put axis i at axes[i] of a tensor of `ndim` axes, the others of size 1."""
    index: list[Any] = [None] * (ndim or max(axes) + 1)
    for axis in axes:
        index[axis] = slice(None)
    return tensor[tuple(index)]


@lift
def sequence_masking(
    x: Any, mask: Any = None, value: Any = 0, axis: Any = None, bias: Any = None, return_mask: bool = False
) -> Any:
    """Put a value where mask [b, n] is False along an axis, or along each of a list; the axis is 1 if None.

    bias: further mask, or a number that is added before.
    """
    full = None
    if mask is not None:
        for each in axis if isinstance(axis, list) else [1 if axis is None else axis]:
            part = align(mask.bool(), [0, each % x.ndim], x.ndim)
            full = part if full is None else full & part
    if bias is not None and bias.dtype == torch.bool:
        full = bias if full is None else full & bias
    elif bias is not None:
        x = x + bias
    if full is not None:
        x = torch.where(full, x, torch.as_tensor(value, dtype=x.dtype, device=x.device))
    return (x, full) if return_mask else x


@lift
def batch_gather(params: Any, indices: Any) -> Any:
    """Take [..., m, rest] by indices [..., m] of [..., n, rest]."""
    axis = indices.ndim - 1
    indices = indices.long().reshape(*indices.shape, *[1] * (params.ndim - indices.ndim))
    return torch.take_along_dim(params, indices, axis)


@lift
def divisible_temporal_padding(x: Any, n: int) -> Any:
    """Fill axis 1 up with zeros to a multiple of n."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % n))


@lift
def root_mean_square(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return FUNCTIONS["mean"](x.square(), axis, keepdims).sqrt()


@lift
def gelu_erf(x: Any) -> Any:
    return F.gelu(x)


@lift
def gelu_tanh(x: Any) -> Any:
    return F.gelu(x, approximate="tanh")


@lift
def swish(x: Any) -> Any:
    return F.silu(x)


@lift
def leaky_relu(x: Any, alpha: float = 0.2) -> Any:
    return F.leaky_relu(x, alpha)


@lift
def attention_normalize(a: Any, mask: Any = None, axis: int = -1, method: str = "softmax", bias: Any = None) -> Any:
    """Turn scores into weights: by "softmax", "squared_relu" (arXiv 2202.10447), "softmax_plus" (kexue.fm 8823)."""
    a, mask = sequence_masking(a, mask, -math.inf, axis, bias, True)
    if method == "softmax":
        return a.softmax(axis)
    count = torch.tensor(float(a.shape[-1])).to(a) if mask is None else mask.to(a).sum(axis, keepdim=True)
    if method == "squared_relu":
        return F.relu(a).square() / count
    if method == "softmax_plus":
        return (a * count.clamp(min=16).log() / math.log(512)).softmax(axis)
    return a


@lift
def sinusoidal_embeddings(pos: Any, dim: int, base: float = 10000) -> Any:
    if base != 10000:
        raise Unsupported(f"base is {base}; only sinusoidal embeddings of base 10000 are supported")
    return position.sinusoidal(pos, dim, xp)


class Sinusoidal(keras.initializers.Initializer):
    """Initialize a table of positions with sines and cosines."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return position.sinusoidal(torch.arange(shape[0]), shape[1], xp)


@lift
def apply_rotary_position_embeddings(sinusoidal: Any, *tensors: Any) -> Any:
    """Rotate pairs of features of [b, n, ..., d] by the angles whose sines and cosines are [b, n, d]."""
    table = align(sinusoidal, [0, 1, -1], tensors[0].ndim)
    sin, cos = (table[..., part::2].repeat_interleave(2, -1) for part in (0, 1))
    turned = [torch.stack([-each[..., 1::2], each[..., ::2]], -1).reshape(each.shape) for each in tensors]
    outputs = [each * cos + other * sin for each, other in zip(tensors, turned, strict=True)]
    return outputs[0] if len(outputs) == 1 else outputs


@lift
def multilabel_categorical_crossentropy(y_true: Any, y_pred: Any) -> Any:
    return task_layers.multilabel_categorical_crossentropy(y_true, y_pred)


@lift
def sparse_multilabel_categorical_crossentropy(y_true: Any, y_pred: Any, mask_zero: bool = False) -> Any:
    return task_layers.sparse_multilabel_categorical_crossentropy(y_true.long(), y_pred, mask_zero)


def piecewise_linear(t: Any, schedule: dict[int, float], from_zero: bool = True) -> float:
    """Interpolate between the points {t: value} of a schedule, the last value after them; see `hanmo.training`."""
    points = sorted(schedule.items())
    if from_zero and points[0][0] != 0:
        points.insert(0, (0, 0.0))
    return float(np.interp(float(t), [step for step, _ in points], [factor for _, factor in points]))


def symbolic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function: Keras 3 runs eagerly."""
    return function


recompute_grad = symbolic


def get_available_gpus() -> list[str]:
    return [f"/device:GPU:{index}" for index in range(torch.cuda.device_count())]


@lift
def pool1d(
    x: Any, pool_size: Any, strides: Any = 1, padding: str = "valid", data_format: Any = None, pool_mode: str = "max"
) -> Any:
    """Pool vectors [b, n, d]; as K.pool2d also images."""
    pool = keras.ops.max_pool if pool_mode == "max" else keras.ops.average_pool
    return pool(x, pool_size, strides, padding, data_format)


def print_tensor(x: Any, message: str = "") -> Any:
    print(message, x)
    return x


def _other(name: str) -> Any:
    """Look up a name of Keras 3's backend or operations."""
    if not name.startswith("__"):
        for module in (keras.backend, keras.ops):
            if hasattr(module, name):
                return getattr(module, name)
        raise Unsupported(f"K.{name} is not supported: {TENSORFLOW_ALONE}")
    raise AttributeError(name)


where = FUNCTIONS["where"]
K = ModuleType("keras.backend", functions.__doc__)
K.__dict__.update(
    FUNCTIONS,
    eval=eval,
    get_value=eval,
    set_value=set_value,
    batch_get_value=batch_get_value,
    batch_set_value=batch_set_value,
    update=update,
    update_add=update_add,
    update_sub=update_sub,
    moving_average_update=moving_average_update,
    variable=variable,
    placeholder=placeholder,
    int_shape=int_shape,
    dtype=dtype,
    function=function,
    gradients=gradients,
    in_train_phase=in_train_phase,
    learning_phase=learning_phase,
    print_tensor=print_tensor,
    symbolic=symbolic,
    shape=int_shape,
    in_test_phase=lambda x, alt, training=None: in_train_phase(alt, x, training),
    set_learning_phase=lambda value: None,
    clear_session=keras.utils.clear_session,
    is_keras_tensor=keras.utils.is_keras_tensor,
    conv1d=keras.ops.conv,
    conv2d=keras.ops.conv,
    pool2d=pool1d,
    map_fn=lambda fn, elems, name=None, dtype=None: torch.stack([fn(each) for each in elems]),
    __getattr__=_other,
)
custom_objects: dict[str, Any] = {
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu_erf,
    "root_mean_square": root_mean_square,
    "swish": swish,
    "leaky_relu": leaky_relu,
    "Sinusoidal": Sinusoidal,
    "multilabel_categorical_crossentropy": multilabel_categorical_crossentropy,
    "initializer": keras.initializers.GlorotUniform,
}
keras.utils.get_custom_objects().update(custom_objects)
__getattr__ = partial(absent, "bert4keras.backend", alternative=TENSORFLOW_ALONE)
