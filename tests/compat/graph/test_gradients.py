"""Scripts that take gradients of a graph compute what bert4keras's examples did, and find layers by name."""

from pathlib import Path

import keras
import numpy as np
import pytest
import torch

from hanmo.compat.bert4keras.graph import backend, layers
from hanmo.compat.bert4keras.graph.backend import K, search_layer
from hanmo.compat.bert4keras.graph.model import Model
from hanmo.compat.bert4keras.graph.optimizers import Adam
from hanmo.errors import Unsupported

FOLDER = Path(__file__).resolve().parents[2] / "data" / "goldens" / "tasks"
TABLE = "Embedding-Token"
CASES = ["small", "wider"]


def read(name, case):
    with np.load(FOLDER / f"{name}.npz") as file:
        return {each.partition("/")[2]: file[each] for each in file.files if each.startswith(f"{case}/")}


def classifier(weights):
    """The toy classifier that the numbers were recorded with; weights: by "layer.weight"."""
    inputs = [layers.Input((None,), dtype="int32"), layers.Input((None,), dtype="int32")]
    vectors = []
    for name, ids in zip((TABLE, "Embedding-Segment"), inputs, strict=True):
        vectors.append(layers.Embedding(*weights[f"{name}.embeddings"].shape, name=name)(ids))
    x = layers.Lambda(lambda both: K.mean(K.tanh(both[0] + both[1]), 1))(vectors)
    x = layers.Dense(weights["Hidden.bias"].size, activation="tanh", name="Hidden")(x)
    x = layers.Dense(weights["Out.bias"].size, activation="softmax", name="Out")(x)
    model = Model(inputs, x)
    for name, variable in variables(model).items():
        variable.assign(weights[name])
    return model


def variables(model):
    return {variable.path.replace("/", "."): variable for variable in model.weights}


def starting(arrays, prefix="start."):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def assert_after(model, arrays, prefix):
    for name, expected in starting(arrays, prefix).items():
        # Weights are near 1; float32.
        np.testing.assert_allclose(K.eval(variables(model)[name]), expected, rtol=1e-5, atol=2e-6, err_msg=name)


def sparse_loss(y_true, y_pred):
    return K.mean(K.sparse_categorical_crossentropy(y_true, y_pred))


def batch_of(arrays):
    return [arrays["token_ids"], arrays["segment_ids"]], arrays["labels"][:, None]


def replaced(model, make):
    """Put a training function in the place of a model's, as the examples do."""
    if model.train_function is None:
        model._make_train_function()
    old = model.train_function
    table = next(filter(None, (search_layer(each, TABLE) for each in model.outputs))).embeddings
    gradients = K.gradients(model.total_loss, [table])
    gradients = K.zeros_like(table) + gradients[0]
    inputs = model._feed_inputs + model._feed_targets + model._feed_sample_weights
    gradients = K.function(inputs=inputs, outputs=[gradients], name="gradients")
    outputs = K.function(inputs=inputs, outputs=model.outputs, name="outputs")
    model.train_function = make(old, table, gradients, outputs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trained_before", [False, True])
def test_adversarial_training(case, trained_before):
    arrays = read("adversarial", case)
    model = classifier(starting(arrays))
    model.compile(loss=sparse_loss, optimizer=keras.optimizers.SGD(float(arrays["sgd_rate"])))
    if trained_before:
        model.train_on_batch(*batch_of(arrays))
        for name, value in starting(arrays).items():
            variables(model)[name].assign(value)
    deltas = []

    def make(old, table, gradients, outputs):
        def train_function(inputs):
            grads = gradients(inputs)[0]
            delta = arrays["epsilon"] * grads / (np.sqrt((grads**2).sum()) + 1e-8)
            deltas.append(delta)
            K.set_value(table, K.eval(table) + delta)
            result = old(inputs)
            K.set_value(table, K.eval(table) - delta)
            return result

        return train_function

    replaced(model, make)
    x, y = batch_of(arrays)
    history = model.fit(x, y, batch_size=len(y), epochs=1, verbose=0).history
    np.testing.assert_allclose(deltas[0], arrays["fgm_delta"], rtol=1e-5, atol=1e-6)
    assert history["loss"][0] == pytest.approx(float(arrays["fgm_loss"]), rel=1e-5)
    assert_after(model, arrays, "fgm_after.")


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_virtual_adversarial_training(case, iterations):
    arrays = read("adversarial", case)
    model = classifier(starting(arrays))
    model.compile(loss="kld", optimizer=keras.optimizers.SGD(float(arrays["sgd_rate"])))

    def normalize(x):
        return x / (np.sqrt((x**2).sum()) + 1e-8)

    def make(old, table, gradients, outputs):
        def train_function(inputs):
            inputs = inputs[:2] + outputs(inputs) + inputs[3:]
            first, second = 0.0, arrays[f"vat{iterations}_noise"]
            for _ in range(iterations):
                second = 10 * normalize(second)
                K.set_value(table, K.eval(table) - first + second)
                first, second = second, gradients(inputs)[0]
            second = arrays["epsilon"] * normalize(second)
            K.set_value(table, K.eval(table) - first + second)
            result = old(inputs)
            K.set_value(table, K.eval(table) - second)
            return result

        return train_function

    replaced(model, make)
    x, y = batch_of(arrays)
    loss = model.train_on_batch(x, np.eye(model.output.shape[-1])[y[:, 0]])
    # The table was moved by 10 and back in float32, and the loss is a difference of near numbers.
    assert loss == pytest.approx(float(arrays[f"vat{iterations}_loss"]), rel=1e-3, abs=1e-5)
    for name, expected in starting(arrays, f"vat{iterations}_after.").items():
        np.testing.assert_allclose(K.eval(variables(model)[name]), expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_penalty_squares_the_gradient_of_each_occurrence(case):
    arrays = read("adversarial", case)
    start = starting(arrays)
    model = classifier(start)

    def penalized(y_true, y_pred):
        y_true = K.reshape(y_true, K.shape(y_pred)[:-1])
        y_true = K.one_hot(K.cast(y_true, "int32"), K.shape(y_pred)[-1])
        loss = K.mean(K.categorical_crossentropy(y_true, y_pred))
        table = search_layer(y_pred, TABLE).embeddings
        return loss + float(arrays["epsilon"]) / 2 * K.sum(K.gradients(loss, [table])[0].values ** 2)

    model.compile(loss=penalized, optimizer=keras.optimizers.SGD(1.0))
    x, y = batch_of(arrays)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(float(arrays["penalty_total"]), rel=1e-5)
    assert model.train_on_batch(x, y) == pytest.approx(float(arrays["penalty_total"]), rel=1e-5)
    for name, expected in starting(arrays, "penalty_grad.").items():
        gradient = start[name] - K.eval(variables(model)[name])
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5, err_msg=name)


class Gradient(layers.Layer):
    """The gradient of a label's probability times the vectors of the ids."""

    def call(self, inputs):
        vectors, output, label = inputs
        chosen = backend.batch_gather(output, K.cast(label, "int32"))
        return K.gradients(chosen, [vectors])[0] * vectors

    def compute_output_shape(self, input_shape):
        return input_shape[0]


@pytest.mark.parametrize("case", CASES)
def test_integrated_gradients(case):
    arrays = read("integrated_gradients", case)
    model = classifier(starting(arrays, "weights."))
    label = layers.Input((1,))
    vectors = model.get_layer(TABLE).output
    explained = Model([*model.inputs, label], Gradient()([vectors, model.output, label]))
    x = [arrays["token_ids"], arrays["segment_ids"]]
    assert model.predict(x)[0].argmax() == arrays["label"]
    table = model.get_layer(TABLE).embeddings
    values, points = K.eval(table), int(arrays["points"])
    found = []
    for point in range(points):
        K.set_value(table, point / (points - 1) * values)
        found.append(explained.predict([*x, np.array([[arrays["label"]]])])[0])
    np.testing.assert_allclose(found, arrays["each"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["one", "hundred"])
def test_a_crf_with_a_learning_rate_of_its_own(case):
    with np.load(FOLDER / "crf_adam.npz") as file:
        arrays = {each.partition("/")[2]: file[each] for each in file.files if each.startswith(f"{case}/")}
    labels = arrays["x"].shape[-1]
    x = layers.Input((None, labels))
    masked = layers.Masking()(x)
    crf = layers.ConditionalRandomField(lr_multiplier=int(arrays["lr_multiplier"]))
    model = Model(x, crf(layers.Dense(labels, use_bias=False)(masked)))
    model.set_weights([arrays["start_kernel"], arrays["start_trans"] / arrays["lr_multiplier"]])
    model.compile(loss=crf.sparse_loss, optimizer=Adam(float(arrays["rate"])), metrics=[crf.sparse_accuracy])
    for step, expected in enumerate(arrays["losses"]):
        loss, accuracy = model.train_on_batch(arrays["x"], arrays["labels"])
        assert loss == pytest.approx(expected, rel=1e-5)
        assert 0 <= accuracy <= 1
        np.testing.assert_allclose(K.eval(crf.trans), arrays["trans"][step], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(model.get_weights()[0], arrays["kernels"][step], rtol=1e-5, atol=1e-5)


def test_functions_of_graphs_take_inputs_apart():
    x, y = layers.Input((3,)), layers.Input((3,))
    hidden = x * x
    total = hidden + 3 * y
    gradients = K.gradients(K.sum(total * y), [hidden, y])
    run = K.function([x, K.learning_phase(), y], [total, hidden, *gradients])
    found = run([np.full((1, 3), 2.0), 0, np.full((1, 3), 5.0), "more"])
    assert [each[0, 0] for each in found] == [19, 4, 5, 4 + 2 * 3 * 5]
    product = K.function([x, y], K.gradients(K.sum(hidden**2), [hidden])[0] * hidden)
    assert product([np.full((1, 3), 2.0), np.ones((1, 3))]).tolist() == [[32, 32, 32]]
    single = K.function([x, y], total)
    assert single([np.zeros((1, 3)), np.ones((1, 3))]).tolist() == [[3, 3, 3]]


def test_gradients_of_tensors():
    x, unused = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(1, requires_grad=True)
    found, nothing = K.gradients(x**3, [x, unused])
    assert found.tolist() == [3, 12]
    assert nothing is None
    assert K.gradients(K.sum(found), x)[0].tolist() == [6, 12]
    with pytest.raises(Unsupported, match="no `values`"):
        _ = found.values


def test_a_table_that_is_used_in_another_way_too_has_no_values():
    table = torch.eye(2, requires_grad=True)
    loss = (torch.nn.functional.embedding(torch.tensor([0, 1, 1]), table) @ table).sum()
    with pytest.raises(Unsupported, match="looked up only"):
        _ = K.gradients(loss, [table])[0].values


def test_layers_are_found_by_name_through_models_and_layers():
    inner_in = layers.Input((4,))
    inner = Model(inner_in, layers.Dense(2, name="inside")(inner_in), name="inner")
    x = layers.Input((4,), name="first")
    output = layers.Dense(3, name="last")(inner(layers.Dense(4, name="before")(x)))
    for name in ("last", "inside", "before", "first", "inner"):
        assert search_layer(output, name).name == name
    assert search_layer(inner.get_layer("inside"), "inside").units == 2
    assert search_layer(output, "missing") is None
    with pytest.raises(Unsupported, match="give a model's output"):
        search_layer(torch.ones(1), "last")


def test_sample_weights_pass_through_a_training_function():
    model = Model(x := layers.Input((2,)), layers.Dense(1, use_bias=False, kernel_initializer="ones")(x))
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.0))
    seen = []
    model._make_train_function()
    old = model.train_function
    model.train_function = lambda inputs: seen.append(inputs) or old(inputs)
    inputs, targets, weights = np.ones((2, 2), "float32"), np.zeros((2, 1), "float32"), np.array([1.0, 0.0], "float32")
    weighted = model.train_on_batch(inputs, targets, sample_weight=weights)
    plain = model.train_on_batch(inputs, targets)
    assert [[each.tolist() for each in some] for some in seen] == [
        [inputs.tolist(), targets.tolist(), [1, 0]],
        [inputs.tolist(), targets.tolist(), [1, 1]],
    ]
    assert (float(plain), float(weighted)) != (0.0, 0.0)
