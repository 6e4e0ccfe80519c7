"""bert4keras.layers: the layers of Keras, and those of 0.11.5, which take their place where the names are the same."""

from functools import partial
from typing import Any

import keras

from hanmo.compat.bert4keras._absent import TENSORFLOW_ALONE, absent
from hanmo.compat.bert4keras.graph import backend, blocks, heads, sequences
from hanmo.compat.bert4keras.graph.layer import Layer

custom_objects = {name: getattr(module, name) for module in (heads, blocks, sequences) for name in module.__all__}
keras.utils.get_custom_objects().update(custom_objects)
_BACKEND = """
    keras K is_tf_keras align apply_rotary_position_embeddings attention_normalize recompute_grad sequence_masking
    sinusoidal_embeddings
""".split()
_NAMES: dict[str, Any] = {
    **{name: value for name, value in vars(keras.layers).items() if not name.startswith("_")},
    **{name: getattr(backend, name) for name in _BACKEND},
    **custom_objects,
    "Layer": Layer,
    "activations": keras.activations,
    "custom_objects": custom_objects,
    "initializers": keras.initializers,
    "integerize_shape": backend.symbolic,  # sizes of Keras 3's shapes are int or None
}
globals().update(_NAMES)
__all__ = list(_NAMES)
__getattr__ = partial(absent, "bert4keras.layers", alternative=TENSORFLOW_ALONE)
