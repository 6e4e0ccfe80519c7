"""Train tiny models 20 steps by bert4keras itself, and compare what `hanmo run` does from the same weights and batches.

    hanmo run benchmarks/keras_trajectories.py tests/data/goldens/keras [CASE …]
    python benchmarks/keras_trajectories.py FOLDER [CASE …]      writes the files instead
    python benchmarks/keras_trajectories.py FOLDER accumulated   writes this case again, eagerly

The second needs tensorflow-cpu 2.15.1 and bert4keras 0.11.5 (pip install --no-deps), which runs in graph mode. Each
case is built by the calls of a script, without dropout. FOLDER gets bert_config.json and initial.ckpt, the weights that
every case starts from, and CASE.npz: the loss of each step, and the weights after the last, as Embedding-Token/0 … of
bert4keras's layers and head/0 … of those above. The first prints how far each case is off, and exits with 1 if losses
differ by more than 1e-4, relative (1e-3 where gradients of gradients are taken), or weights by more than 1e-4.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare_original() -> None:
    """Give bert4keras the Keras it was written for: the concrete tf.keras in graph mode, legacy optimizers.

    In graph mode an accumulated update does not wait for the loss of its step, which is random then.
    """
    os.environ |= {"TF_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import tensorflow
    from keras.api._v2 import keras as concrete

    if sys.argv[2:] != ["accumulated"]:
        tensorflow.compat.v1.disable_eager_execution()
        tensorflow.compat.v1.experimental.output_all_intermediates(True)  # for the gradient of a loop
    concrete.__version__ = tensorflow.__version__
    concrete.optimizers.Optimizer = concrete.optimizers.legacy.Optimizer
    tensorflow.keras = concrete
    for part in ("backend", "layers", "models", "callbacks", "utils", "optimizers", "initializers", "activations"):
        sys.modules[f"keras.{part}"] = getattr(concrete, part)


ORIGINAL = "hanmo" not in sys.modules
if ORIGINAL:
    prepare_original()

from bert4keras.backend import K, keras, search_layer, sparse_multilabel_categorical_crossentropy  # noqa: E402
from bert4keras.layers import ConditionalRandomField, EfficientGlobalPointer, Loss  # noqa: E402
from bert4keras.models import build_transformer_model  # noqa: E402
from bert4keras.optimizers import (  # noqa: E402
    AdaFactor,
    Adam,
    extend_with_exponential_moving_average,
    extend_with_gradient_accumulation,
    extend_with_piecewise_linear_lr,
    extend_with_weight_decay,
)
from keras.layers import Dense, Embedding, Input, Lambda, Reshape  # noqa: E402
from keras.models import Model  # noqa: E402

STEPS, ROWS, LENGTH, LABELS = 20, 4, 8, 3
CONFIG = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
FOLDER = Path(sys.argv[1])
RATE = 1e-3


class Case:
    """A compiled model on a transformer, and the layers above it whose weights are drawn."""

    def __init__(self, bert: Any, model: Any, *heads: Any) -> None:
        self.bert, self.model, self.heads = bert, model, heads
        random = np.random.RandomState(1)
        for head in heads:
            head.set_weights([random.normal(0, 0.3, weight.shape) for weight in head.get_weights()])


def transformer(**arguments: Any) -> Any:
    files = str(FOLDER / "bert_config.json"), str(FOLDER / "initial.ckpt")
    return build_transformer_model(*files, return_keras_model=False, **arguments)


def classifier() -> tuple[Any, Any, Any]:
    bert = transformer()
    head = Dense(units=LABELS, activation="softmax", name="Head")
    output = head(Lambda(lambda x: x[:, 0], name="CLS-token")(bert.model.output))
    return bert, Model(bert.model.input, output), head


def classification(optimizer: Any) -> Case:
    bert, model, head = classifier()
    model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer)
    return Case(bert, model, head)


def adam() -> Case:
    return classification(Adam(RATE))


def weight_decay_and_schedule() -> Case:
    extended = extend_with_piecewise_linear_lr(extend_with_weight_decay(Adam, name="AdamW"), name="AdamWLR")
    schedule = {5: 1, STEPS: 0.1}
    excluded = ["Norm", "bias"]
    optimizer = extended(
        learning_rate=RATE, weight_decay_rate=0.1, exclude_from_weight_decay=excluded, lr_schedule=schedule
    )
    return classification(optimizer)


def averaged() -> Case:
    return classification(extend_with_exponential_moving_average(Adam, name="AdamEMA")(RATE, ema_momentum=0.9))


def accumulated() -> Case:
    return classification(extend_with_gradient_accumulation(Adam, name="AdamGA")(RATE, grad_accum_steps=3))


def adafactor() -> Case:
    return classification(AdaFactor(learning_rate=1e-2, min_dim_size_to_factor=8))


def crf() -> Case:
    bert = transformer()
    dense, chain = Dense(LABELS), ConditionalRandomField(lr_multiplier=10)
    layer = bert.model.get_layer(f"Transformer-{CONFIG['num_hidden_layers'] - 1}-FeedForward-Norm")
    model = Model(bert.model.input, chain(dense(layer.output)))
    model.compile(loss=chain.sparse_loss, optimizer=Adam(RATE))
    return Case(bert, model, dense, chain)


def pointer() -> Case:
    def crossentropy(y_true: Any, y_pred: Any) -> Any:
        shape = K.shape(y_pred)
        y_true = y_true[..., 0] * K.cast(shape[2], K.floatx()) + y_true[..., 1]
        y_pred = K.reshape(y_pred, (shape[0], -1, K.prod(shape[2:])))
        return K.mean(K.sum(sparse_multilabel_categorical_crossentropy(y_true, y_pred, True), axis=1))

    bert = transformer()
    head = EfficientGlobalPointer(heads=LABELS, head_size=8)
    model = Model(bert.model.input, head(bert.model.output))
    model.compile(loss=crossentropy, optimizer=Adam(RATE))
    return Case(bert, model, head)


class CrossEntropy(Loss):
    """The loss of the next token: where segments are 1, or with two inputs at all that is not padding."""

    def compute_loss(self, inputs: Any, mask: Any = None) -> Any:
        """Return the mean over the tokens that count."""
        y_true, y_pred = inputs[0], inputs[-1]
        y_mask = inputs[1] if len(inputs) == 3 else K.cast(mask[1], K.floatx())
        loss = K.sparse_categorical_crossentropy(y_true[:, 1:], y_pred[:, :-1])
        return K.sum(loss * y_mask[:, 1:]) / K.sum(y_mask[:, 1:])


def unilm() -> Case:
    bert = transformer(application="unilm")
    model = Model(bert.model.inputs, CrossEntropy(2)(bert.model.inputs + bert.model.outputs))
    model.compile(optimizer=Adam(RATE))
    return Case(bert, model)


def conditional_lm() -> Case:
    condition, embedding = Input(shape=(1,)), Embedding(LABELS, 6)
    vector = Reshape((6,))(embedding(condition))
    bert = transformer(application="lm", layer_norm_cond=vector, additional_input_layers=condition)
    model = Model(bert.model.inputs, CrossEntropy(1)([bert.model.inputs[0], bert.model.outputs[0]]))
    model.compile(optimizer=Adam(RATE))
    return Case(bert, model, embedding)


def adversarial() -> Case:
    case = adam()
    model = case.model
    if model.train_function is None:
        model._make_train_function()
    old_train_function = model.train_function
    embeddings = search_layer(model.outputs[0], "Embedding-Token").embeddings
    gradients = K.gradients(model.total_loss, [embeddings])
    gradients = K.zeros_like(embeddings) + gradients[0]
    inputs = model._feed_inputs + model._feed_targets + model._feed_sample_weights
    embedding_gradients = K.function(inputs=inputs, outputs=[gradients], name="embedding_gradients")

    def train_function(inputs: Any) -> Any:
        grads = embedding_gradients(inputs)[0]
        delta = 0.5 * grads / (np.sqrt((grads**2).sum()) + 1e-8)
        K.set_value(embeddings, K.eval(embeddings) + delta)
        outputs = old_train_function(inputs)
        K.set_value(embeddings, K.eval(embeddings) - delta)
        return outputs

    model.train_function = train_function
    return case


def gradient_penalty() -> Case:
    def penalized(y_true: Any, y_pred: Any) -> Any:
        y_true = K.cast(K.reshape(y_true, K.shape(y_pred)[:-1]), "int32")
        loss = K.mean(K.categorical_crossentropy(K.one_hot(y_true, K.shape(y_pred)[-1]), y_pred))
        embeddings = search_layer(y_pred, "Embedding-Token").embeddings
        return loss + 0.5 * K.sum(K.gradients(loss, [embeddings])[0].values ** 2)

    bert, model, head = classifier()
    model.compile(loss=penalized, optimizer=Adam(RATE))
    return Case(bert, model, head)


CASES: list[Callable[[], Case]] = [
    adam,
    weight_decay_and_schedule,
    averaged,
    accumulated,
    adafactor,
    crf,
    pointer,
    unilm,
    conditional_lm,
    adversarial,
    gradient_penalty,
]
TOLERANCE = {"gradient_penalty": 1e-3}  # of the losses


def batch(random: np.random.RandomState, case: str) -> tuple[list[Any], Any]:
    """Draw the inputs and the labels of one step; rows end in padding."""
    ids = random.randint(4, CONFIG["vocab_size"], (ROWS, LENGTH))
    lengths = random.randint(LENGTH // 2, LENGTH + 1, ROWS)
    lengths[0] = LENGTH
    real = np.arange(LENGTH) < lengths[:, None]
    segments = ((np.arange(LENGTH) >= 3) & real).astype(int)
    inputs = [ids * real, segments]
    spans = np.sort(random.randint(0, LENGTH // 2, (ROWS, LABELS, 2, 2)), -1)
    labels = {"crf": ids % LABELS, "pointer": spans, "unilm": None, "conditional_lm": None}
    if case == "conditional_lm":
        inputs.append(ids[:, :1] % LABELS)
    return inputs, labels.get(case, ids[:, :1] % LABELS)


def train(case: Case, name: str) -> dict[str, np.ndarray]:
    """Return the loss of each step, and the weights after the last."""
    random, losses = np.random.RandomState(2), []
    for _ in range(STEPS):
        found = case.model.train_on_batch(*batch(random, name))
        losses.append(np.ravel(found)[0])
    if name == "averaged":
        case.model.optimizer.apply_ema_weights()
    arrays = {"losses": np.array(losses, "float32")}
    heads = [weight for head in case.heads for weight in head.get_weights()]
    arrays |= {f"head/{i}": weight for i, weight in enumerate(heads)}
    layers = {layer.name: layer.get_weights() for layer in case.bert.model.layers if layer not in case.heads}
    return arrays | {f"{name}/{i}": weight for name, layer in layers.items() for i, weight in enumerate(layer)}


def original_weights(bert: Any) -> dict[str, np.ndarray]:
    """Return bert4keras's weights by their names in a checkpoint; its own writer needs TensorFlow 1."""
    found = {}
    for layer, names in bert.variable_mapping().items():
        if layer in bert.layers:
            found |= dict(zip(names, K.batch_get_value(bert.layers[layer].trainable_weights), strict=False))
    return found


def write_checkpoint(arrays: dict[str, np.ndarray], path: str) -> None:
    from tensorflow.compat import v1

    with v1.Graph().as_default(), v1.Session() as session:
        variables = [v1.get_variable(name, initializer=array) for name, array in arrays.items()]
        session.run(v1.global_variables_initializer())
        v1.train.Saver(variables).save(session, path, write_meta_graph=False, write_state=False)


def write_initial() -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "bert_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    bert = build_transformer_model(str(FOLDER / "bert_config.json"), with_mlm=True, return_keras_model=False)
    random = np.random.RandomState(0)
    for layer in bert.model.layers:
        means = [float(weight.name.endswith("gamma:0")) for weight in layer.weights]
        arrays = [random.normal(mean, 0.1, weight.shape) for mean, weight in zip(means, layer.weights, strict=True)]
        layer.set_weights(arrays)
    write_checkpoint(original_weights(bert), str(FOLDER / "initial.ckpt"))


def record(cases: list[Callable[[], Case]]) -> None:
    if not FOLDER.exists():
        write_initial()
    for make in cases:
        keras.backend.clear_session()
        arrays = train(make(), make.__name__)
        np.savez_compressed(FOLDER / f"{make.__name__}.npz", **arrays)
        print(f"{make.__name__}: {arrays['losses'][0]:.4f} → {arrays['losses'][-1]:.4f}, {len(arrays) - 1} weights")


def compare(cases: list[Callable[[], Case]]) -> int:
    """Print one line a case; return how many are off."""
    wrong = 0
    for make in cases:
        name = make.__name__
        with np.load(FOLDER / f"{name}.npz") as golden:
            expected = dict(golden)
        found = train(make(), name)
        losses, goldens = found.pop("losses"), expected.pop("losses")
        loss = float(np.max(np.abs(losses - goldens) / np.abs(goldens)))
        if set(found) != set(expected):
            raise SystemExit(f"{name}: other weights: {sorted(set(found) ^ set(expected))}")
        weight = max(float(np.max(np.abs(found[key] - expected[key]))) for key in expected if compared(name, key))
        off = loss > TOLERANCE.get(name, 1e-4) or weight > 1e-4
        wrong += off
        print(f"{name}: losses {loss:.1e}, weights {weight:.1e}{', too far' if off else ''}")
    print(f"{len(cases) - wrong} of {len(cases)} cases")
    return wrong


def compared(case: str, key: str) -> bool:
    """Say whether a weight is told by the goldens.

    The gradient of the keys' bias is 0, so that rounding alone changes it. Under tf.keras the averages of tables that
    are looked up are updated twice a step, which Keras's own optimizers did not do.
    """
    twice = case == "averaged" and key in ("Embedding-Token/0", "Embedding-Segment/0")
    return not twice and not key.endswith("MultiHeadSelfAttention/3")


if __name__ == "__main__":
    chosen = [make for make in CASES if make.__name__ in sys.argv[2:] or not sys.argv[2:]]
    sys.exit(record(chosen) if ORIGINAL else int(compare(chosen) > 0))
