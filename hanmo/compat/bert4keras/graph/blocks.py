"""The layers of bert4keras that Transformers are made of, for scripts that put more of them on a model.

Formulas are those of bert4keras 0.11.5. The networks of `build_transformer_model` are Hanmo's, not made of these.
"""

from typing import Any

import keras
import torch
from array_api_compat import torch as xp
from torch import Tensor
from torch.nn import functional as F

from hanmo.compat.bert4keras.graph.backend import (
    align,
    apply_rotary_position_embeddings,
    attention_normalize,
    sinusoidal_embeddings,
)
from hanmo.compat.bert4keras.graph.layer import Layer
from hanmo.compat.bert4keras.graph.sequences import ScaleOffset
from hanmo.nn import position

__all__ = [
    "FeedForward",
    "GatedAttentionUnit",
    "MultiHeadAttention",
    "PositionEmbedding",
    "RelativePositionEmbedding",
    "RelativePositionEmbeddingT5",
    "SinusoidalPositionEmbedding",
]


class MultiHeadAttention(Layer):
    """Attention of q to k and v, the first three inputs; further ones are what a_bias and p_bias say, in this order.

    a_bias=True: added to the scores, or a mask.   p_bias: "rotary", "typical_relative" or "t5_relative".
    """

    _arguments = tuple(
        "heads head_size out_dim key_size use_bias normalization attention_scale attention_dropout "
        "return_attention_scores kernel_initializer".split()
    )

    def __init__(
        self,
        heads: int,
        head_size: int,
        out_dim: int | None = None,
        key_size: int | None = None,
        use_bias: bool = True,
        normalization: str = "softmax",
        attention_scale: bool = True,
        attention_dropout: float | None = None,
        return_attention_scores: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        out_dim, key_size = out_dim or heads * head_size, key_size or head_size
        self._set(locals())
        self.dropout = keras.layers.Dropout(attention_dropout or 0)

    def build(self, input_shape: Any) -> None:
        queries, keys, values = (shape[-1] for shape in input_shape[:3])
        self.q_dense = self._dense(self.key_size * self.heads, queries)
        self.k_dense = self._dense(self.key_size * self.heads, keys)
        self.v_dense = self._dense(self.head_size * self.heads, values)
        self.o_dense = self._dense(self.out_dim, self.head_size * self.heads)

    def call(self, inputs: Any, mask: Any = None, **kwargs: Any) -> Any:
        dense = (self.q_dense, self.k_dense, self.v_dense)
        parts = [each(x).unflatten(-1, (self.heads, -1)) for each, x in zip(dense, inputs, strict=False)]
        masks = [None, None] if mask is None else [mask[0], mask[2]]
        output, scores = self.pay_attention_to([*parts, *inputs[3:]], masks, **kwargs)
        output = self.o_dense(output.flatten(2))
        return [output, scores] if self.return_attention_scores else output

    def pay_attention_to(self, inputs: Any, mask: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return values [b, n, heads, head_size] and scores [b, heads, n, m] of q, k and v [b, n, heads, size]."""
        (q, k, v), rest, p_bias = inputs[:3], list(inputs[3:]), kwargs.get("p_bias")
        a_bias = rest.pop(0) if kwargs.get("a_bias") else None
        if p_bias == "rotary":
            q, k = apply_rotary_position_embeddings(rest[0], q, k)
        scores = torch.einsum("bjhd,bkhd->bhjk", q, k)
        if p_bias == "typical_relative":
            scores = scores + torch.einsum("bjhd,jkd->bhjk", q, rest[0])
        elif p_bias == "t5_relative":
            scores = scores + rest[0].permute(2, 0, 1)
        if self.attention_scale:
            scores = scores / self.key_size**0.5
        if a_bias is not None and a_bias.ndim == 3:
            a_bias = align(a_bias, [0, -2, -1], 4)
        weights = self.dropout(attention_normalize(scores, mask[1], -1, self.normalization, a_bias))
        output = torch.einsum("bhjk,bkhd->bjhd", weights, v)
        if p_bias == "typical_relative":
            output = output + torch.einsum("bhjk,jkd->bjhd", weights, rest[0])
        return output, scores

    def compute_output_shape(self, input_shape: Any) -> Any:
        output = (*input_shape[0][:2], self.out_dim)
        if not self.return_attention_scores:
            return output
        return [output, (input_shape[0][0], self.heads, input_shape[0][1], input_shape[1][1])]

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        first = None if mask is None else mask[0]
        return [first, None] if self.return_attention_scores else first


class GatedAttentionUnit(Layer):
    """A gated attention unit (arXiv 2202.10447); inputs as in `MultiHeadAttention`, one where it attends to itself."""

    _arguments = tuple(
        "units key_size activation use_bias normalization self_attention attention_scale attention_dropout "
        "kernel_initializer".split()
    )

    def __init__(
        self,
        units: int,
        key_size: int,
        activation: Any = "swish",
        use_bias: bool = True,
        normalization: str = "squared_relu",
        self_attention: bool = True,
        attention_scale: bool = True,
        attention_dropout: float | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._set(locals())
        self.dropout = keras.layers.Dropout(attention_dropout or 0)

    def build(self, input_shape: Any) -> None:
        shapes = input_shape if isinstance(input_shape, list) else [input_shape]
        size, units, key = shapes[0][-1], self.units, self.key_size
        if self.self_attention:
            self.i_dense = self._dense(2 * units + key, size, self.activation)
            self.q_scaleoffset, self.k_scaleoffset = (
                ScaleOffset(offset=self.use_bias, dtype=self.dtype_policy) for _ in range(2)
            )
            for each in (self.q_scaleoffset, self.k_scaleoffset):
                each.build((None, None, key))
        else:
            self.uq_dense = self._dense(units + key, size, self.activation)
            self.k_dense = self._dense(key, shapes[1][-1], self.activation)
            self.v_dense = self._dense(units, shapes[2][-1], self.activation)
        self.o_dense = self._dense(size, units)

    def call(self, inputs: Any, mask: Any = None, a_bias: Any = None, p_bias: str | None = None) -> Any:
        if not isinstance(inputs, list):
            inputs, mask = [inputs], [mask]
        rest = inputs[1 if self.self_attention else 3 :]
        bias = rest.pop(0) if a_bias else None
        if self.self_attention:
            u, v, qk = self.i_dense(inputs[0]).split([self.units, self.units, self.key_size], -1)
            q, k = self.q_scaleoffset(qk), self.k_scaleoffset(qk)
        else:
            u, q = self.uq_dense(inputs[0]).split([self.units, self.key_size], -1)
            k, v = self.k_dense(inputs[1]), self.v_dense(inputs[2])
        if p_bias == "rotary":
            q, k = apply_rotary_position_embeddings(rest[0], q, k)
        scores = q @ k.transpose(1, 2)
        if self.attention_scale:
            scores = scores / self.key_size**0.5
        weights = attention_normalize(scores, None if mask is None else mask[0], -1, self.normalization, bias)
        return self.o_dense(u * (self.dropout(weights) @ v))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0] if isinstance(input_shape[0], list | tuple) else input_shape

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return mask[0] if isinstance(mask, list) else mask


class FeedForward(Layer):
    """Two Dense layers; of a list of activations, the product of one layer for each, then the last."""

    _arguments = ("units", "activation", "use_bias", "kernel_initializer")

    def __init__(
        self,
        units: int,
        activation: Any = "relu",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        activation = activation if isinstance(activation, list) else [activation]
        self._set(locals())

    def build(self, input_shape: Any) -> None:
        for index, activation in enumerate(self.activation):
            setattr(self, f"i{index}_dense", self._dense(self.units, input_shape[-1], activation))
        self.o_dense = self._dense(input_shape[-1], self.units)

    def call(self, inputs: Tensor) -> Any:
        x = self.i0_dense(inputs)
        for index in range(1, len(self.activation)):
            x = x * getattr(self, f"i{index}_dense")(inputs)
        return self.o_dense(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class _Positions(Layer):
    """Vectors of positions, put to the inputs: merge_mode "add", "mul", "zero" (themselves), or else joined."""

    merge_mode: str
    custom_position_ids: bool
    output_dim: int

    def call(self, inputs: Any) -> Tensor:
        x, ids = inputs if self.custom_position_ids else (inputs, None)
        if ids is None:
            ids = torch.arange(x.shape[1], device=x.device)[None]
        vectors = self._vectors(ids).to(x.dtype)
        if self.merge_mode == "add":
            return x + vectors
        if self.merge_mode == "mul":
            return x * (vectors + 1)
        return vectors if self.merge_mode == "zero" else torch.cat([x, vectors.expand(len(x), -1, -1)], -1)

    def _vectors(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Any) -> Any:
        shape = input_shape[0] if self.custom_position_ids else input_shape
        joined = self.merge_mode not in ("add", "mul", "zero")
        return (*shape[:2], self.output_dim + (shape[2] if joined else 0))

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return mask[0] if isinstance(mask, list) else mask


class PositionEmbedding(_Positions):
    """A trained vector for each position. hierarchical: True or a share, for positions beyond the table."""

    _arguments = tuple(
        "input_dim output_dim merge_mode hierarchical embeddings_initializer custom_position_ids".split()
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        merge_mode: str = "add",
        hierarchical: Any = None,
        embeddings_initializer: Any = "zeros",
        custom_position_ids: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._set(locals())

    def build(self, input_shape: Any) -> None:
        shape = (self.input_dim, self.output_dim)
        self.embeddings = self.add_weight(name="embeddings", shape=shape, initializer=self.embeddings_initializer)

    def _vectors(self, ids: Tensor) -> Tensor:
        if self.hierarchical:
            alpha = 0.4 if self.hierarchical is True else self.hierarchical
            return position.hierarchical(self.embeddings.value, ids.long(), alpha)
        return F.embedding(ids.long(), self.embeddings.value)


class SinusoidalPositionEmbedding(_Positions):
    """Sines and cosines of each position."""

    _arguments = ("output_dim", "merge_mode", "custom_position_ids")

    def __init__(
        self, output_dim: int, merge_mode: str = "add", custom_position_ids: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._set(locals())

    def _vectors(self, ids: Tensor) -> Any:
        return sinusoidal_embeddings(ids, self.output_dim)


class RelativePositionEmbedding(Layer):
    """A vector for each distance of a key from a query [n, m, output_dim], clipped (arXiv 1803.02155); of q and k."""

    _arguments: tuple[str, ...] = ("input_dim", "output_dim", "embeddings_initializer")
    build: Any = PositionEmbedding.build

    def __init__(self, input_dim: int, output_dim: int, embeddings_initializer: Any = "zeros", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._set(locals())

    def call(self, inputs: Any) -> Tensor:
        return F.embedding(self.compute_position_ids(inputs), self.embeddings.value)

    def compute_position_ids(self, inputs: Any) -> Tensor:
        limit = (self.input_dim - 1) // 2
        return self._distances(inputs).clamp(-limit, limit) + limit

    @staticmethod
    def _distances(inputs: Any) -> Tensor:
        queries, keys = (torch.arange(each.shape[1], device=each.device)[None] for each in inputs)
        distances: Tensor = position.distance(queries, keys)[0]
        return distances

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0][1], input_shape[1][1], self.output_dim)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None


class RelativePositionEmbeddingT5(RelativePositionEmbedding):
    """A vector for each of T5's buckets of distances (arXiv 1910.10683)."""

    _arguments = (*RelativePositionEmbedding._arguments, "max_distance", "bidirectional")

    def __init__(
        self, input_dim: int, output_dim: int, max_distance: int = 128, bidirectional: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(input_dim, output_dim, **kwargs)
        self._set({"max_distance": max_distance, "bidirectional": bidirectional})

    def compute_position_ids(self, inputs: Any) -> Tensor:
        options = {"both_ways": self.bidirectional, "buckets": self.input_dim, "limit": self.max_distance}
        ids: Tensor = position.bucket(self._distances(inputs), xp, **options)
        return ids
