"""Keras layers of tasks give the original's scores, losses and gradients."""

from pathlib import Path

import keras
import numpy as np
import pytest
import torch

from hanmo.compat.bert4keras.graph import layers
from hanmo.compat.bert4keras.graph.backend import K
from hanmo.compat.bert4keras.graph.model import Model

FOLDER = Path(__file__).resolve().parents[2] / "data" / "goldens" / "tasks"


def cases(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        found = {}
        for each in file.files:
            case, _, array = each.rpartition("/")
            found.setdefault(case, {})[array] = file[each]
    return [pytest.param(arrays, id=f"{name}-{case}") for case, arrays in found.items()]


def tensor(array):
    return torch.from_numpy(array).requires_grad_(array.dtype == np.float64)


def mask_of(arrays):
    return torch.from_numpy(arrays["mask"]) if "mask" in arrays else None


def assert_close(found, expected, error=1e-9):
    # The original's numbers are float64, and sums of some hundred terms.
    found = found.numpy(force=True) if isinstance(found, torch.Tensor) else found
    finite = np.isfinite(expected)
    assert (np.isfinite(found) == finite).all()
    scale = np.abs(expected, where=finite, out=np.zeros_like(expected)).max(initial=1)
    np.testing.assert_allclose(found, expected, rtol=error, atol=error * scale)


def assert_gradients(objective, arrays, x, weights, error=1e-9):
    sources = {"grad_x": x} | {f"grad_{name}": weight.value for name, weight in weights.items()}
    gradients = torch.autograd.grad(objective, list(sources.values()))
    for name, gradient in zip(sources, gradients, strict=True):
        assert_close(gradient, arrays[name], error)


@pytest.mark.parametrize("arrays", [each for each in cases("crf") if "one_position" != each.id.partition("-")[2]])
def test_crf(arrays):
    layer, x = layers.ConditionalRandomField(float(arrays["lr_multiplier"]), dtype="float64"), tensor(arrays["x"])
    masked = layer(x, mask=mask_of(arrays))
    layer.set_weights([arrays["trans_stored"]])
    assert_close(masked, arrays["masked_scores"])
    assert_close(K.eval(layer.trans), arrays["trans_effective"])
    numbers, one_hot = torch.from_numpy(arrays["labels"].astype(float)), torch.from_numpy(arrays["one_hot"]).double()
    loss = layer.sparse_loss(numbers[..., None], masked)
    assert_close(loss, arrays["sparse_loss"])
    assert_close(layer.dense_loss(one_hot, masked), arrays["dense_loss"])
    assert_close(layer.sparse_accuracy(numbers, masked), arrays["sparse_accuracy"])
    assert_close(layer.dense_accuracy(one_hot, masked), arrays["dense_accuracy"])
    objective = (loss * torch.from_numpy(arrays["row_weights"])).sum()
    assert_gradients(objective, arrays, x, {"trans_stored": layer._trans})


@pytest.mark.parametrize("arrays", cases("memm"))
def test_memm(arrays):
    factors = [name for name in ("l_trans", "r_trans") if f"{name}_stored" in arrays] or ["trans"]
    size = arrays[f"{factors[0]}_stored"].shape[1] if len(factors) == 2 else None
    layer = layers.MaximumEntropyMarkovModel(float(arrays["lr_multiplier"]), size, dtype="float64")
    x = tensor(arrays["x"])
    masked = layer(x, mask=mask_of(arrays))
    layer.set_weights([arrays[f"{name}_stored"] for name in factors])
    numbers = torch.from_numpy(arrays["labels"])
    loss = layer.sparse_loss(numbers, masked)
    assert_close(loss, arrays["sparse_loss"])
    assert_close(layer.sparse_accuracy(numbers, masked), arrays["sparse_accuracy"])
    weights = zip(factors, layer.weights, strict=True)
    assert_gradients(loss, arrays, x, {f"{name}_stored": weight for name, weight in weights})


@pytest.mark.parametrize("arrays", cases("global_pointer") + cases("efficient_global_pointer"))
def test_pointers(arrays):
    name = "EfficientGlobalPointer" if "p_kernel" in arrays else "GlobalPointer"
    options = {
        "RoPE": bool(arrays["rope"]),
        "tril_mask": bool(arrays["tril_mask"]),
        "use_bias": bool(arrays["use_bias"]),
    }
    layer = getattr(layers, name)(int(arrays["heads"]), int(arrays["head_size"]), **options)
    x = torch.from_numpy(arrays["x"]).float().requires_grad_()
    layer.build(x.shape)
    weights = ["kernel", "bias"] if name == "GlobalPointer" else ["p_kernel", "p_bias", "q_kernel", "q_bias"]
    weights = [each for each in weights if each in arrays]
    layer.set_weights([arrays[each] for each in weights])
    output = layer(x, mask=mask_of(arrays))
    error = 1e-5  # Keras's Dense computes in float32
    assert_close(output, arrays["output"], error)
    finite = torch.from_numpy(np.isfinite(arrays["output"]))
    objective = (output * torch.from_numpy(arrays["cotangent"]))[finite].sum()
    assert_gradients(objective, arrays, x, dict(zip(weights, layer.weights, strict=True)), error)


class Shifted(layers.Loss):
    """The loss of the next id."""

    def compute_loss(self, inputs, mask=None):
        ids, predicted = inputs
        weights = 1.0 if mask[1] is None else K.cast(mask[1], K.floatx())[:, 1:]
        loss = K.sparse_categorical_crossentropy(ids[:, 1:], predicted[:, :-1])
        return K.sum(loss * weights) / K.sum(weights)


def test_a_loss_layer_is_trained_by_what_it_adds_and_predicts_its_input():
    keras.utils.set_random_seed(0)
    ids = layers.Input((None,), dtype="int32")
    vectors = layers.Embedding(5, 4, mask_zero=True)(ids)
    predicted = layers.Dense(5, activation="softmax")(vectors)
    model = Model(ids, Shifted(1)([ids, predicted]))
    model.compile(keras.optimizers.Adam(0.1))
    batch = np.array([[1, 2, 3, 4], [1, 2, 3, 0]])
    losses = model.fit(batch, epochs=5, verbose=0).history["loss"]
    chances = model.predict(batch)
    expected = [
        -np.log(chances[row, place, batch[row, place + 1]]) for row, place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    ]
    assert losses[-1] < losses[0]
    assert K.function(model.inputs, model.outputs)([batch[:, :1]])[0].shape == (2, 1, 5)
    assert model.evaluate(batch, verbose=0) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_loss_layer_returns_the_outputs_that_were_chosen():
    first, second = layers.Input((3,)), layers.Input((2,))
    assert [each.shape for each in Shifted()([first, second])] == [(None, 3), (None, 2)]
    assert Shifted(1)([first, second]).shape == (None, 2)
    (only,) = Shifted([1])([first, second])
    assert only.shape == (None, 2)
