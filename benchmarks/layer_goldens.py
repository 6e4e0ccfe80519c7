"""Compute bert4keras's layers and backend functions on random arrays, and keep the results.

    python benchmarks/layer_goldens.py tests/data/goldens/keras/layers.npz

It needs tensorflow-cpu 2.15.1 and bert4keras 0.11.5 (pip install --no-deps); tests run the same cases by Hanmo. The
file has of each case the weights, in the order of get_weights(), and the results; inputs are drawn again.
"""

import sys
from typing import Any

import numpy as np

Array = Any
ROWS, LENGTH, SIZE = 2, 5, 8


def floats(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


X, Y, CONDITION, IMAGE = floats(ROWS, LENGTH, SIZE), floats(ROWS, 7, SIZE), floats(ROWS, 3), floats(ROWS, LENGTH)
IDS = np.array([[1, 4, 2, 0, 0], [3, 3, 1, 5, 2]], np.int32)
MASK, OTHER = IDS > 0, np.arange(7)[None] < np.array([[6], [7]])
HALVES = floats(ROWS, LENGTH, 4)
_ATTENTION = {"heads": 2, "head_size": 4}
# Name → the layer, its arguments, its inputs, and arguments of the call.
LAYERS: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "scale": ("ScaleOffset", {}, X, {}),
    "scale by a number": ("ScaleOffset", {"scale": 2.0, "offset": False}, X, {}),
    "norm": ("LayerNormalization", {}, X, {}),
    "norm, variance alone": ("LayerNormalization", {"zero_mean": False, "offset": False, "epsilon": 1e-3}, X, {}),
    "norm, mean alone": ("LayerNormalization", {"unit_variance": False}, X, {}),
    "norm, conditional": ("LayerNormalization", {"conditional": True}, [X, CONDITION], {}),
    "norm, hidden": (
        "LayerNormalization",
        {"conditional": True, "hidden_units": 2, "hidden_activation": "tanh"},
        [X, CONDITION],
        {},
    ),
    "average": ("GlobalAveragePooling1D", {}, X, {"mask": MASK}),
    "maximum": ("GlobalMaxPooling1D", {}, X, {"mask": MASK}),
    "join": ("Concatenate1D", {}, [X, Y], {}),
    "attention": ("MultiHeadAttention", _ATTENTION, [X, Y, Y], {"mask": [MASK, OTHER, OTHER]}),
    "attention, bias": (
        "MultiHeadAttention",
        _ATTENTION | {"key_size": 6, "out_dim": 3, "use_bias": False, "return_attention_scores": True},
        [X, Y, Y, floats(ROWS, LENGTH, 7)],
        {"a_bias": True},
    ),
    "attention, rotary": (
        "MultiHeadAttention",
        _ATTENTION | {"attention_scale": False},
        [X, X, X, HALVES],
        {"p_bias": "rotary", "mask": [MASK, MASK, MASK, None]},
    ),
    "attention, relative": (
        "MultiHeadAttention",
        _ATTENTION | {"normalization": "softmax_plus"},
        [X, Y, Y, floats(LENGTH, 7, 4)],
        {"p_bias": "typical_relative"},
    ),
    "attention, T5": ("MultiHeadAttention", _ATTENTION, [X, Y, Y, floats(LENGTH, 7, 2)], {"p_bias": "t5_relative"}),
    "gated": ("GatedAttentionUnit", {"units": 6, "key_size": 4, "activation": "tanh"}, X, {"mask": MASK}),
    "gated, rotary": (
        "GatedAttentionUnit",
        {"units": 6, "key_size": 4, "activation": "relu", "use_bias": False, "normalization": "softmax"},
        [X, floats(1, LENGTH, LENGTH), HALVES],
        {"a_bias": True, "p_bias": "rotary", "mask": [MASK, None, None]},
    ),
    "gated, two": (
        "GatedAttentionUnit",
        {"units": 6, "key_size": 4, "activation": "tanh", "self_attention": False},
        [X, Y, Y],
        {},
    ),
    "feed forward": ("FeedForward", {"units": 6}, X, {}),
    "feed forward, gated": ("FeedForward", {"units": 6, "activation": ["tanh", "linear"], "use_bias": False}, X, {}),
    "positions": ("PositionEmbedding", {"input_dim": 9, "output_dim": SIZE}, X, {}),
    "positions, hierarchical": (
        "PositionEmbedding",
        {"input_dim": 3, "output_dim": SIZE, "hierarchical": True, "merge_mode": "mul"},
        X,
        {},
    ),
    "positions, given": (
        "PositionEmbedding",
        {"input_dim": 9, "output_dim": 3, "custom_position_ids": True, "merge_mode": "concat"},
        [X, IDS.astype(np.float32)],
        {},
    ),
    "sines": ("SinusoidalPositionEmbedding", {"output_dim": SIZE}, X, {}),
    "sines, given": (
        "SinusoidalPositionEmbedding",
        {"output_dim": 4, "merge_mode": "zero", "custom_position_ids": True},
        [X, IDS.astype(np.float32)],
        {},
    ),
    "distances": ("RelativePositionEmbedding", {"input_dim": 5, "output_dim": 4}, [X, Y], {}),
    "buckets": ("RelativePositionEmbeddingT5", {"input_dim": 8, "output_dim": 2, "max_distance": 6}, [Y, X], {}),
    "buckets, back": (
        "RelativePositionEmbeddingT5",
        {"input_dim": 8, "output_dim": 2, "max_distance": 6, "bidirectional": False},
        [Y, X],
        {},
    ),
    "split": ("BatchSplit", {"parts": [1, 2]}, floats(7, 3), {}),
    "split, equal": ("BatchSplit", {"parts": 3}, floats(7, 3), {}),
}
_CHANCES = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
_ONES = np.eye(SIZE, dtype=np.float32)[IDS]
# Name → the function, of bert4keras.backend or else of K, and its arguments.
FUNCTIONS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "masking": ("sequence_masking", (X, MASK), {"value": -1.0}),
    "masking, two axes": ("sequence_masking", (floats(ROWS, 3, LENGTH, LENGTH), MASK), {"axis": [2, -1], "value": 7.0}),
    "batch_gather": ("batch_gather", (X, IDS[:, 1:3]), {}),
    "reshape": ("reshape", (X, (2, -1), 2), {}),
    "flatten": ("flatten", (floats(2, 3, 4, 5), 1, 3), {}),
    "divisible": ("divisible_temporal_padding", (X, 4), {}),
    "root_mean_square": ("root_mean_square", (X,), {"axis": -1, "keepdims": True}),
    "gelu_erf": ("gelu_erf", (X,), {}),
    "gelu_tanh": ("gelu_tanh", (X,), {}),
    "swish": ("swish", (X,), {}),
    "leaky_relu": ("leaky_relu", (X,), {}),
    "squared_relu": ("attention_normalize", (floats(ROWS, LENGTH, LENGTH), MASK), {"method": "squared_relu"}),
    "sinusoidal": ("sinusoidal_embeddings", (IDS.astype(np.float32), 6), {}),
    "rotary": ("apply_rotary_position_embeddings", (HALVES, floats(ROWS, LENGTH, 2, 4)), {}),
    "multilabel": ("multilabel_categorical_crossentropy", (_ONES, X), {}),
    "sparse multilabel": ("sparse_multilabel_categorical_crossentropy", (IDS, X[:, 0]), {"mask_zero": True}),
    "piecewise": ("piecewise_linear", (7, {5: 1.0, 10: 0.1}), {}),
    "cross-entropy": ("sparse_categorical_crossentropy", (IDS.astype(np.float32), _CHANCES), {}),
    "cross-entropy, column": ("sparse_categorical_crossentropy", (IDS[:, :1], _CHANCES[:, 0]), {"from_logits": False}),
    "cross-entropy, logits": ("sparse_categorical_crossentropy", (IDS, X), {"from_logits": True}),
    "dense cross-entropy": ("categorical_crossentropy", (_ONES, _CHANCES), {}),
    "dense cross-entropy, logits": ("categorical_crossentropy", (_ONES, X), {"from_logits": True}),
    "binary": ("binary_crossentropy", (_ONES, _CHANCES), {}),
    "binary, logits": ("binary_crossentropy", (_ONES, X), {"from_logits": True}),
    "sum": ("sum", (X,), {"axis": [0, 2]}),
    "mean": ("mean", (MASK,), {}),
    "max": ("max", (X, 1), {"keepdims": True}),
    "any": ("any", (MASK, 0), {}),
    "all": ("all", (MASK, 0), {}),
    "prod": ("prod", (X,), {"axis": 1}),
    "std": ("std", (X,), {"axis": 1}),
    "var": ("var", (X,), {}),
    "logsumexp": ("logsumexp", (X,), {"axis": -1}),
    "cumsum": ("cumsum", (X, 1), {}),
    "argmax": ("argmax", (X,), {}),
    "clip": ("clip", (X, -0.5, 1), {}),
    "maximum": ("maximum", (X, 0.3), {}),
    "pow": ("pow", (X, 2), {}),
    "sqrt": ("sqrt", (X,), {}),
    "not_equal": ("not_equal", (IDS, 3), {}),
    "greater_equal": ("greater_equal", (X, 0.0), {}),
    "one_hot": ("one_hot", (IDS, 4), {}),
    "gather": ("gather", (floats(9, 3), IDS), {}),
    "concatenate": ("concatenate", ([X, X + 1],), {"axis": 1}),
    "stack": ("stack", ([X, X + 1],), {"axis": 2}),
    "dot": ("dot", (X, floats(SIZE, 3)), {}),
    "batch_dot": ("batch_dot", (X, Y), {"axes": [2, 2]}),
    "batch_dot, vectors": ("batch_dot", (CONDITION, CONDITION + 1), {"axes": 1}),
    "transpose": ("transpose", (floats(3, 4),), {}),
    "permute": ("permute_dimensions", (X, (2, 0, 1)), {}),
    "repeat_elements": ("repeat_elements", (X, 2, 1), {}),
    "repeat": ("repeat", (CONDITION, 4), {}),
    "tile": ("tile", (X, [1, 2, 1]), {}),
    "reverse": ("reverse", (X, 1), {}),
    "expand_dims": ("expand_dims", (X, 1), {}),
    "padding": ("temporal_padding", (X, (0, 2)), {}),
    "switch": ("switch", (MASK, IMAGE, -IMAGE), {}),
    "relu": ("relu", (X,), {"alpha": 0.1, "max_value": 1.0, "threshold": 0.2}),
    "elu": ("elu", (X, 0.5), {}),
    "hard_sigmoid": ("hard_sigmoid", (X,), {}),
    "softmax": ("softmax", (X,), {"axis": 1}),
    "softplus": ("softplus", (X,), {}),
    "l2_normalize": ("l2_normalize", (X, -1), {}),
    "bias_add": ("bias_add", (X, floats(SIZE)), {}),
    "in_top_k": ("in_top_k", (X[0], IDS[1], 3), {}),
    "arange": ("arange", (1, 7, 2), {}),
    "zeros_like": ("zeros_like", (X, "int32"), {}),
    "cast": ("cast", (MASK, "float32"), {}),
    "pooling": ("pool1d", (X, 2), {"strides": 2, "pool_mode": "avg"}),
}


def run_layer(layers: Any, name: str, tensor: Any, weights: list[Array] | None = None) -> tuple[list[Array], Any]:
    """Return a layer's weights and its outputs; weights: None draws them."""
    kind, options, inputs, call = LAYERS[name]
    layer = getattr(layers, kind)(**options)
    inputs = [tensor(each) for each in inputs] if isinstance(inputs, list) else tensor(inputs)
    masks = call.get("mask")
    if masks is not None:
        several = isinstance(masks, list)
        here = [None if each is None else tensor(each) for each in (masks if several else [masks])]
        call = call | {"mask": here if several else here[0]}
    layer.build([each.shape for each in inputs] if isinstance(inputs, list) else inputs.shape)
    layer.call(inputs, **call)  # __call__ of some of the original's fails where there is no mask
    if weights is None:
        weights = [floats(*each.shape) / 2 for each in layer.get_weights()]
    layer.set_weights(weights)
    return weights, layer.call(inputs, **call)


def run_function(backend: Any, name: str, tensor: Any) -> Any:
    """Return the result of a function; tensor: makes one of each array among its arguments."""
    function, arguments, options = FUNCTIONS[name]

    def convert(each: Any) -> Any:
        if isinstance(each, list):
            return [convert(part) for part in each]
        return tensor(each) if isinstance(each, np.ndarray) else each

    return getattr(backend if hasattr(backend, function) else backend.K, function)(*map(convert, arguments), **options)


def main() -> None:
    from optimizer_goldens import prepare_original

    prepare_original()
    import tensorflow
    from bert4keras import backend, layers

    arrays = {}
    for name in LAYERS:
        weights, found = run_layer(layers, name, tensorflow.constant)
        arrays |= {f"{name}/weight {i}": each for i, each in enumerate(weights)}
        arrays |= {
            f"{name}/{i}": np.array(each) for i, each in enumerate(found if isinstance(found, list) else [found])
        }
    for name in FUNCTIONS:
        arrays[f"{name}()"] = np.array(run_function(backend, name, tensorflow.constant))
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
