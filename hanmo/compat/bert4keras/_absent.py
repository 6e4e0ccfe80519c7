"""Names of Keras and bert4keras that can be imported, and raise Unsupported when used without Keras."""

from typing import Any, NoReturn

from hanmo.errors import Unsupported

TENSORFLOW_ALONE = "Hanmo computes with PyTorch; use torch on the tensors that a layer's call is given"
NEEDS_KERAS = "it is Keras's; `hanmo run` runs the script once Keras is installed: pip install 'hanmo[keras]'"

KERAS_LAYERS = """
    Activation Add Attention AveragePooling1D BatchNormalization Bidirectional Concatenate Conv1D Conv2D Dense Dot
    Dropout ELU Embedding Flatten GRU GaussianNoise GlobalAveragePooling1D GlobalMaxPooling1D InputSpec LSTM Lambda
    Layer LeakyReLU Masking MaxPooling1D Maximum Minimum Multiply Permute RNN ReLU RepeatVector Reshape SimpleRNN
    Softmax SpatialDropout1D Subtract ThresholdedReLU TimeDistributed UpSampling1D Wrapper ZeroPadding1D
    add average concatenate dot maximum minimum multiply subtract
""".split()

# The names of bert4keras 0.11.5 that Hanmo does not support, by module.
_NAMES = {
    "layers": """
        BatchConcat BatchSplit BiasAdd ConditionalRandomField Concatenate1D EfficientGlobalPointer FeedForward
        GatedAttentionUnit GlobalPointer LayerNormalization Loss MaximumEntropyMarkovModel MultiHeadAttention
        PositionEmbedding RelativePositionEmbedding RelativePositionEmbeddingT5 ScaleOffset SinusoidalPositionEmbedding
        K tf activations align apply_rotary_position_embeddings attention_normalize custom_objects initializers
        integerize_shape is_tf_keras recompute_grad sequence_masking sinusoidal_embeddings
    """,
    "models": """
        ALBERT ALBERT_Unshared BERT ELECTRA GAU_alpha GPT GPT2 GPT2_ML LM_Mask NEZHA RoFormer RoFormerV2 T5 T5_Base
        T5_Decoder T5_Encoder UniLM_Mask Model extend_with_language_model extend_with_unified_language_model K tf
    """,
    "optimizers": """
        Adam AdaFactor AdaFactorV1 AdaFactorV2 AdaFactorBase Lion LionV2 K tf custom_objects export_to_custom_objects
        extend_with_weight_decay extend_with_weight_decay_v2 extend_with_layer_adaptation
        extend_with_layer_adaptation_v2 extend_with_piecewise_linear_lr extend_with_piecewise_linear_lr_v2
        extend_with_gradient_accumulation extend_with_gradient_accumulation_v2 extend_with_lookahead
        extend_with_lookahead_v2 extend_with_lazy_optimization extend_with_lazy_optimization_v2
        extend_with_exponential_moving_average extend_with_exponential_moving_average_v2 extend_with_parameter_wise_lr
        extend_with_parameter_wise_lr_v2 piecewise_linear
    """,
    "backend": """
        K tf Sinusoidal align apply_rotary_position_embeddings attention_normalize batch_gather custom_objects
        divisible_temporal_padding do_recompute dtype flatten gelu_erf gelu_tanh get_available_gpus graph_mode_decorator
        leaky_relu multilabel_categorical_crossentropy piecewise_linear pool1d recompute_grad reshape root_mean_square
        search_layer sequence_masking sinusoidal_embeddings sparse_multilabel_categorical_crossentropy swish symbolic
        where
    """,
}
BERT4KERAS = {module: names.split() for module, names in _NAMES.items()}
BERT4KERAS["layers"] += KERAS_LAYERS


class Absent:
    """A name that is not supported: calling it, subclassing it or taking items of it raises Unsupported."""

    def __init__(self, name: str, alternative: str = NEEDS_KERAS) -> None:
        self.absent_name, self.alternative = name, alternative

    def refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise Unsupported(f"{self.absent_name} is not supported: {self.alternative}")

    __call__ = __mro_entries__ = __getitem__ = __iter__ = refuse

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.absent_name}.{name}", self.alternative)


def absent(module: str, name: str, alternative: str = NEEDS_KERAS) -> Absent:
    """Stand in for a name of a module, such as "bert4keras.layers" or "keras.models".

    Raises AttributeError for a name that bert4keras does not have; any name of Keras is accepted.
    """
    root, _, part = module.partition(".")
    if name.startswith("__") or (root == "bert4keras" and name not in BERT4KERAS[part]):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return Absent(f"{module}.{name}", alternative)
