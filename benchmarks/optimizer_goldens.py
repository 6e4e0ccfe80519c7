"""Update weights by bert4keras's optimizers and their extensions, and keep the weights after each step.

    python benchmarks/optimizer_goldens.py tests/data/goldens/keras/optimizers.npz

It needs tensorflow-cpu 2.15.1 and bert4keras 0.11.5 (pip install --no-deps); tests run the same cases by Hanmo. The
file has the gradients and the first weights, and of each case the weights after every step, under their names, and
those that apply_ema_weights puts in.
"""

import os
import sys
from typing import Any

import numpy as np

STEPS = 8
SHAPES = {"embedding/embeddings": (6, 4), "first/kernel": (4, 5), "first/bias": (5,)}
_DECAY = {"weight_decay_rate": 0.1, "exclude_from_weight_decay": ["bias"]}
_RATE = {"lr_schedule": {3: 1, 6: 0.1}}
_LAYER = {"exclude_from_layer_adaptation": ["bias"]}
_LAZY = {"include_in_lazy_optimization": ["embedding"]}
_PARTS = {"paramwise_lr_schedule": {"kernel": 3.0, "first": 0.5}}
# Name → the optimizer, its extensions from the inside out, and arguments.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adam": ("Adam", "", {}),
    "adam without correction": ("Adam", "", {"bias_correction": False}),
    "lion": ("Lion", "", {}),
    "adafactor": ("AdaFactor", "", {"min_dim_size_to_factor": 4}),
    "adafactor, relative": (
        "AdaFactor",
        "",
        {"learning_rate": None, "beta1": 0.9, "exclude_from_parameter_scale": ["bias"]},
    ),
    "adafactor, rate": ("AdaFactor", "piecewise_linear_lr", _RATE | {"min_dim_size_to_factor": 4}),
    "decay": ("Adam", "weight_decay", _DECAY),
    "decay, rate": ("Adam", "weight_decay piecewise_linear_lr", _DECAY | _RATE),
    "rate, decay": ("Adam", "piecewise_linear_lr weight_decay", _DECAY | _RATE),
    "layers": ("Adam", "layer_adaptation", _LAYER),
    "decay, layers": ("Adam", "weight_decay layer_adaptation", _DECAY | _LAYER),
    "layers, decay": ("Adam", "layer_adaptation weight_decay", _DECAY | _LAYER),
    "accumulation": ("Adam", "gradient_accumulation", {"grad_accum_steps": 3}),
    "decay, accumulation": ("Adam", "weight_decay gradient_accumulation", _DECAY),
    "accumulation, decay": ("Adam", "gradient_accumulation weight_decay", _DECAY),
    "lookahead": ("Adam", "lookahead", {"steps_per_slow_update": 3}),
    "decay, lookahead": ("Adam", "weight_decay lookahead", _DECAY),
    "lookahead, decay": ("Adam", "lookahead weight_decay", _DECAY),
    "lazy": ("Adam", "lazy_optimization", _LAZY),
    "lazy, decay": ("Adam", "lazy_optimization weight_decay", _LAZY | _DECAY),
    "average": ("Adam", "exponential_moving_average", {"ema_momentum": 0.9}),
    "average, accumulation": ("Adam", "exponential_moving_average gradient_accumulation", {}),
    "accumulation, average": ("Adam", "gradient_accumulation exponential_moving_average", {}),
    "parts": ("Adam", "parameter_wise_lr", _PARTS),
    "six": (
        "Adam",
        "weight_decay layer_adaptation piecewise_linear_lr parameter_wise_lr gradient_accumulation"
        " exponential_moving_average",
        _DECAY | _LAYER | _RATE | _PARTS,
    ),
}


def prepare_original() -> None:
    """Give bert4keras the Keras it was written for: the concrete tf.keras, with legacy optimizers."""
    os.environ |= {"TF_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import tensorflow
    from keras.api._v2 import keras as concrete

    concrete.__version__ = tensorflow.__version__
    concrete.optimizers.Optimizer = concrete.optimizers.legacy.Optimizer
    tensorflow.keras = concrete
    for part in ("backend", "layers", "models", "callbacks", "utils", "optimizers", "initializers", "activations"):
        sys.modules[f"keras.{part}"] = getattr(concrete, part)


def inputs() -> dict[str, np.ndarray]:
    """Make the first weights and the gradients of every step; some rows of the table's gradients are zeros."""
    rng = np.random.default_rng(0)
    made = {f"start/{name}": rng.normal(size=shape) for name, shape in SHAPES.items()}
    made |= {f"gradient/{name}": rng.normal(size=(STEPS, *shape)) for name, shape in SHAPES.items()}
    made["gradient/embedding/embeddings"] *= rng.random((STEPS, 6, 1)) < 0.5
    return {name: array.astype(np.float32) for name, array in made.items()}


def run(
    module: Any, case: str, given: dict[str, np.ndarray], *, variable: Any, tensor: Any, value: Any
) -> dict[str, np.ndarray]:
    """Run a case by the optimizers of a module.

    variable, tensor, value: functions from a name and an array to a variable, from an array to a tensor, and back.
    """
    base, extensions, options = CASES[case]
    optimizer = getattr(module, base)
    for each in extensions.split():
        optimizer = getattr(module, f"extend_with_{each}")(optimizer)
    optimizer = optimizer(**{"learning_rate": 0.01} | options)
    variables = {name: variable(name, given[f"start/{name}"]) for name in SHAPES}
    found: dict[str, list[np.ndarray]] = {name: [] for name in SHAPES}
    for step in range(STEPS):
        gradients = [tensor(given[f"gradient/{name}"][step]) for name in SHAPES]
        optimizer.apply_gradients(list(zip(gradients, variables.values(), strict=True)))
        for name, each in variables.items():
            found[name].append(np.array(value(each)))
    arrays = {f"{case}/{name}": np.stack(each) for name, each in found.items()}
    if "exponential_moving_average" in extensions:
        optimizer.apply_ema_weights()
        arrays |= {f"{case}/average/{name}": np.array(value(each)) for name, each in variables.items()}
        optimizer.reset_old_weights()
        assert all((value(each) == found[name][-1]).all() for name, each in variables.items())
    return arrays


def main() -> None:
    prepare_original()
    import tensorflow
    from bert4keras import optimizers

    def variable(name: str, value: np.ndarray) -> Any:
        return tensorflow.Variable(value, name=name)

    given = inputs()
    arrays = dict(given)
    for case in CASES:
        arrays |= run(
            optimizers, case, given, variable=variable, tensor=tensorflow.constant, value=lambda each: each.numpy()
        )
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
