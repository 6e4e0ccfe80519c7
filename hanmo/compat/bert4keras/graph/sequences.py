"""Keras layers that look up, scale, norm, pool, join and split."""

from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hanmo.compat.bert4keras.graph.backend import K, align, sequence_masking
from hanmo.compat.bert4keras.graph.layer import Layer

__all__ = [
    "BatchConcat",
    "BatchSplit",
    "BiasAdd",
    "Concatenate1D",
    "Embedding",
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
    "LayerNormalization",
    "ScaleOffset",
]


class Embedding(keras.layers.Embedding):
    """A table of vectors; mode "dense" multiplies by the table instead. The first id is never masked."""

    def call(self, inputs: Any, mode: str = "embedding") -> Any:
        return super().call(inputs) if mode == "embedding" else K.dot(inputs, K.transpose(self.embeddings))

    def compute_output_shape(self, input_shape: Any) -> Any:
        if len(input_shape) == 2:
            return (*input_shape, self.output_dim)
        return (*input_shape[:2], self.input_dim)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        if len(inputs.shape) != 2:
            return mask
        mask = super().compute_mask(inputs, mask)
        return None if mask is None else K.concatenate([K.ones_like(mask[:, :1], "bool"), mask[:, 1:]], 1)


class BiasAdd(Layer):
    """Add a vector."""

    def build(self, input_shape: Any) -> None:
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer="zeros")

    def call(self, inputs: Tensor) -> Any:
        return inputs + self.bias


class ScaleOffset(Layer):
    """Multiply by a vector and add one; a condition, the second input, adds to both by Dense layers.

    scale, offset: True for a weight, False or None for none, a number for itself.
    """

    _arguments: tuple[str, ...] = (
        "scale",
        "offset",
        "conditional",
        "hidden_units",
        "hidden_activation",
        "hidden_initializer",
    )

    def __init__(
        self,
        scale: Any = True,
        offset: Any = True,
        conditional: bool = False,
        hidden_units: int | None = None,
        hidden_activation: Any = "linear",
        hidden_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._set(locals())

    def build(self, input_shape: Any) -> None:
        size = (input_shape[0] if self.conditional else input_shape)[-1]
        if self.offset is True:
            self.beta = self.add_weight(name="beta", shape=(size,), initializer="zeros")
        if self.scale is True:
            self.gamma = self.add_weight(name="gamma", shape=(size,), initializer="ones")
        if self.conditional:
            condition, options = input_shape[1][-1], {"use_bias": False, "kernel_initializer": "zeros"}
            if self.hidden_units is not None:
                hidden = options | {"kernel_initializer": self.hidden_initializer}
                self.hidden_dense = self._dense(self.hidden_units, condition, self.hidden_activation, **hidden)
                condition = self.hidden_units
            if self._uses(self.offset):
                self.beta_dense = self._dense(size, condition, **options)
            if self._uses(self.scale):
                self.gamma_dense = self._dense(size, condition, **options)

    @staticmethod
    def _uses(part: Any) -> bool:
        return part is not False and part is not None

    def call(self, inputs: Any) -> Any:
        if self.conditional:
            inputs, conditions = inputs
            if self.hidden_units is not None:
                conditions = self.hidden_dense(conditions)
            conditions = align(conditions, [0, -1], inputs.ndim)
        if self._uses(self.scale):
            gamma = self.gamma if self.scale is True else self.scale
            inputs = inputs * (gamma + self.gamma_dense(conditions) if self.conditional else gamma)
        if self._uses(self.offset):
            beta = self.beta if self.offset is True else self.offset
            inputs = inputs + (beta + self.beta_dense(conditions) if self.conditional else beta)
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0] if self.conditional else input_shape

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return mask[0] if self.conditional and mask is not None else mask


class LayerNormalization(ScaleOffset):
    """Normalize the last axis, then `ScaleOffset`. unit_variance without zero_mean is RMS norm."""

    _arguments: tuple[str, ...] = (*ScaleOffset._arguments, "zero_mean", "unit_variance", "epsilon")

    def __init__(
        self, zero_mean: bool = True, unit_variance: bool = True, epsilon: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        epsilon = epsilon or keras.config.epsilon()
        self._set(locals())

    def call(self, inputs: Any) -> Any:
        x = inputs[0] if self.conditional else inputs
        if self.unit_variance:
            normalize = F.layer_norm if self.zero_mean else F.rms_norm
            x = normalize(x, x.shape[-1:], eps=self.epsilon)
        elif self.zero_mean:
            x = x - x.mean(-1, keepdim=True)
        return super().call([x, inputs[1]] if self.conditional else x)


class GlobalAveragePooling1D(keras.layers.GlobalAveragePooling1D):
    """The mean over real positions, of texts of any length."""

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        axis = 1 if self.data_format == "channels_last" else 2
        if mask is None:
            return inputs.mean(axis)
        weights = align(mask.to(inputs.dtype), [0, axis], 3)
        return (inputs * weights).sum(axis) / weights.sum(axis)


class GlobalMaxPooling1D(keras.layers.GlobalMaxPooling1D):
    """The maximum over real positions."""

    def __init__(self, data_format: str = "channels_last", **kwargs: Any) -> None:
        super().__init__(data_format, **kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Any:
        axis = 1 if self.data_format == "channels_last" else 2
        return sequence_masking(inputs, mask, -np.inf, axis).amax(axis)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None


class Concatenate1D(Layer):
    """Join sequences along axis 1; one without a mask counts as real."""

    def call(self, inputs: Any) -> Tensor:
        return torch.cat(list(inputs), 1)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        if mask is None or all(each is None for each in mask):
            return None
        parts = zip(inputs, mask, strict=True)
        return K.concatenate([K.ones_like(x[..., 0], "bool") if each is None else each for x, each in parts], 1)


class BatchSplit(Layer):
    """Split the batch into equal parts, or by a list of shares."""

    _arguments = ("parts",)

    def __init__(self, parts: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._set(locals())
        self.count = len(parts) if np.ndim(parts) else parts

    def call(self, inputs: Any) -> list[Tensor]:
        if isinstance(inputs, list):
            return [part for each in inputs for part in self.call(each)]
        if np.ndim(self.parts):
            stops = np.cumsum(self.parts)[:-1] * len(inputs) / np.sum(self.parts)
        else:
            stops = np.arange(1, self.parts) * -(-len(inputs) // self.parts)
        return list(torch.tensor_split(inputs, [min(int(stop), len(inputs)) for stop in stops]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        if isinstance(input_shape, list):
            return [part for each in input_shape for part in self.compute_output_shape(each)]
        return [(None, *input_shape[1:])] * self.count

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        if isinstance(mask, list):
            return [part for each in mask for part in self.compute_mask(inputs, each)]
        return [None] * self.count if mask is None or isinstance(mask, keras.KerasTensor) else self.call(mask)


class BatchConcat(Layer):
    """Join batches that `BatchSplit` has split."""

    def call(self, inputs: Any) -> Tensor:
        return torch.cat(list(inputs), 0)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return K.concatenate(mask, 0) if isinstance(mask, list) and all(each is not None for each in mask) else None
