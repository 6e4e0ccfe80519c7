"""Keras layers of tasks: losses, CRF, MEMM and pointers.

The formulas are those of `task_layers` and `hanmo.tasks.pointer`: the Keras layers hold the weights, in Keras's layout,
and borrow the methods of the torch modules.
"""

from typing import Any

import keras
import numpy as np
from torch import Tensor

from hanmo.compat.bert4keras import task_layers
from hanmo.compat.bert4keras.graph.backend import sequence_masking
from hanmo.compat.bert4keras.graph.layer import Layer
from hanmo.compat.bert4keras.graph.phase import phase
from hanmo.tasks import pointer

__all__ = ["ConditionalRandomField", "EfficientGlobalPointer", "GlobalPointer", "Loss", "MaximumEntropyMarkovModel"]


class Loss(Layer):
    """A layer that adds the loss of `compute_loss`, and returns the inputs of output_axis; None: all of them."""

    _arguments = ("output_axis",)

    def __init__(self, output_axis: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._set(locals())

    def call(self, inputs: Any, mask: Any = None) -> Any:
        if not phase.predicting:
            if mask is None and isinstance(inputs, list | tuple):
                mask = [None] * len(inputs)
            self.add_loss(self.compute_loss(inputs, mask))
        return self._chosen(inputs)

    def compute_loss(self, inputs: Any, mask: Any = None) -> Any:
        raise NotImplementedError

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> Any:
        # New tensors: the inputs themselves would be a circle in the graph.
        return keras.tree.map_structure(lambda each: keras.KerasTensor(each.shape, each.dtype), self._chosen(inputs))

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return None if mask is None else self._chosen(mask)

    def _chosen(self, inputs: Any) -> Any:
        if isinstance(self.output_axis, list):
            return [inputs[each] for each in self.output_axis]
        return inputs if self.output_axis is None else inputs[self.output_axis]


class _ChainLoss(Layer):
    """A layer that masks scores, and whose weights the losses of these scores need; as in `task_layers`."""

    dense_loss: Any
    sparse_loss = task_layers.ConditionalRandomField.sparse_loss
    dense_accuracy = task_layers.ConditionalRandomField.dense_accuracy

    def _stored(self, name: str, *shape: int) -> Any:
        weight = self.add_weight(name=name, shape=shape, initializer="glorot_uniform")
        weight.assign(weight.value / self.lr_multiplier)
        return weight

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Any:
        return sequence_masking(inputs, mask, -np.inf)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None


class ConditionalRandomField(_ChainLoss):
    """See `task_layers.ConditionalRandomField`."""

    _arguments = ("lr_multiplier",)
    trans = task_layers.ConditionalRandomField.trans
    dense_loss = task_layers.ConditionalRandomField.dense_loss
    sparse_accuracy = task_layers.ConditionalRandomField.sparse_accuracy

    def __init__(self, lr_multiplier: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._set(locals())

    def build(self, input_shape: Any) -> None:
        self._trans = self._stored("trans", input_shape[-1], input_shape[-1])


class MaximumEntropyMarkovModel(_ChainLoss):
    """See `task_layers.MaximumEntropyMarkovModel`."""

    _arguments = ("lr_multiplier", "hidden_dim")
    trans = task_layers.MaximumEntropyMarkovModel.trans
    dense_loss = task_layers.MaximumEntropyMarkovModel.dense_loss
    sparse_accuracy = task_layers.MaximumEntropyMarkovModel.sparse_accuracy
    losses_each_way = task_layers.MaximumEntropyMarkovModel.losses_each_way
    accuracies_each_way = task_layers.MaximumEntropyMarkovModel.accuracies_each_way

    def __init__(self, lr_multiplier: float = 1, hidden_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._set(locals())

    def build(self, input_shape: Any) -> None:
        if self.hidden_dim is None:
            self._trans = self._stored("trans", input_shape[-1], input_shape[-1])
        else:
            self._l_trans = self._stored("l_trans", input_shape[-1], self.hidden_dim)
            self._r_trans = self._stored("r_trans", input_shape[-1], self.hidden_dim)


class GlobalPointer(Layer):
    """A score for each pair of positions; see `hanmo.tasks.pointer.GlobalPointer`."""

    _arguments = ("heads", "head_size", "RoPE", "use_bias", "tril_mask", "kernel_initializer")
    _scores: Any = pointer.GlobalPointer.forward
    _products, _masked = pointer.GlobalPointer._products, pointer.GlobalPointer._masked

    def __init__(
        self,
        heads: int,
        head_size: int,
        RoPE: bool = True,
        use_bias: bool = True,
        tril_mask: bool = True,
        kernel_initializer: Any = "lecun_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._set(locals())
        self.rope, self.upper = RoPE, tril_mask

    def build(self, input_shape: Any) -> None:
        self.dense = self._dense(2 * self.heads * self.head_size, input_shape[-1])

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Any:
        return self._scores(inputs, None if mask is None else mask.bool())

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], self.heads, input_shape[1], input_shape[1])

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None


class EfficientGlobalPointer(GlobalPointer):
    """See `hanmo.tasks.pointer.EfficientGlobalPointer`."""

    _scores = pointer.EfficientGlobalPointer.forward

    def build(self, input_shape: Any) -> None:
        self.dense = self._dense(2 * self.head_size, input_shape[-1])
        self.biases = self._dense(2 * self.heads, 2 * self.head_size)
