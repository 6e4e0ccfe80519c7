"""Layers and backend functions give what bert4keras's gave, from arrays as from symbolic tensors."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

from hanmo.compat.bert4keras.graph import backend, layers
from hanmo.compat.bert4keras.graph.backend import K
from hanmo.compat.bert4keras.graph.lifting import Deferred, Values
from hanmo.errors import Unsupported

ROOT = Path(__file__).resolve().parents[3]
_spec = importlib.util.spec_from_file_location("layer_goldens", ROOT / "benchmarks" / "layer_goldens.py")
GOLDENS = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(GOLDENS)


@pytest.fixture(scope="module")
def recorded():
    with np.load(ROOT / "tests" / "data" / "goldens" / "keras" / "layers.npz") as file:
        return dict(file)


def assert_close(found, expected):
    found = found.numpy(force=True) if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == expected.shape
    assert (found.dtype.kind == "b") == (expected.dtype.kind == "b")
    # Numbers near 1, of sums of some ten products in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", GOLDENS.LAYERS)
def test_layers(name, recorded):
    weights = [recorded[each] for each in recorded if each.startswith(f"{name}/weight ")]
    expected = [recorded[each] for each in recorded if each.startswith(f"{name}/") and "weight" not in each]
    _, found = GOLDENS.run_layer(layers, name, torch.from_numpy, weights)
    found = found if isinstance(found, list) else [found]
    assert len(found) == len(expected) > 0
    for each, array in zip(found, expected, strict=True):
        assert_close(each, array)


@pytest.mark.parametrize("name", GOLDENS.LAYERS)
def test_layers_tell_their_shapes_and_their_arguments(name, recorded):
    kind, options, inputs, call = GOLDENS.LAYERS[name]
    layer = getattr(layers, kind).from_config(getattr(layers, kind)(**options).get_config())
    several = isinstance(inputs, list)
    symbols = [layers.Input((None, *each.shape[2:]) if each.ndim > 2 else each.shape[1:]) for each in inputs if several]
    call = {name: value for name, value in call.items() if name != "mask"}
    symbols = symbols or [layers.Input((*[None] * (inputs.ndim > 2), *inputs.shape[1 + (inputs.ndim > 2) :]))]
    found = layer(symbols if several else symbols[0], **call)
    expected = [recorded[each] for each in recorded if each.startswith(f"{name}/") and "weight" not in each]
    for each, array in zip(found if isinstance(found, list) else [found], expected, strict=True):
        assert len(each.shape) == array.ndim
        assert all(size in (None, known) for size, known in zip(each.shape, array.shape, strict=True))


@pytest.mark.parametrize("convert", [torch.from_numpy, np.asarray, keras.Variable], ids=["tensor", "array", "Variable"])
@pytest.mark.parametrize("name", GOLDENS.FUNCTIONS)
def test_functions(name, convert, recorded):
    if convert is keras.Variable:

        def convert(array):
            return keras.Variable(array, dtype=str(array.dtype), trainable=array.dtype == np.float32)

    assert_close(GOLDENS.run_function(backend, name, convert), recorded[f"{name}()"])


@pytest.mark.parametrize("name", [name for name in GOLDENS.FUNCTIONS if name not in ("piecewise", "arange")])
def test_functions_of_symbolic_and_of_deferred_values(name, recorded):
    arrays, symbols = [], []

    def symbol(array):
        arrays.append(array)
        symbols.append(layers.Input(batch_shape=array.shape, dtype=str(array.dtype)))
        return symbols[-1]

    result = GOLDENS.run_function(backend, name, symbol)
    assert tuple(result.shape) == recorded[f"{name}()"].shape
    assert_close(K.function(symbols, [result])(arrays)[0], recorded[f"{name}()"])
    deferred = GOLDENS.run_function(backend, name, lambda array: Deferred(lambda values: torch.from_numpy(array)))
    assert_close(deferred.value(Values()), recorded[f"{name}()"])


def test_variables_are_written_and_read_as_copies():
    variable = K.variable(np.arange(3.0), name="v")
    before = K.eval(variable)
    K.set_value(variable, before * 2)
    K.update_add(variable, 1)
    K.batch_set_value([(variable, K.get_value(variable) - 0.5)])
    assert before.tolist() == [0, 1, 2]
    assert K.batch_get_value([variable])[0].tolist() == [0.5, 2.5, 4.5]
    assert K.eval(K.constant(3)) == 3.0
    assert K.int_shape(variable) == K.shape(variable) == (3,)
    assert K.dtype(variable) == K.floatx() == "float32"


def test_random_functions():
    keras.utils.set_random_seed(0)
    assert set(K.eval(K.random_binomial((20,), p=0.5))) == {0.0, 1.0}
    uniform = K.eval(K.random_uniform((50,), 2.0, 3.0))
    assert 2 <= uniform.min() < uniform.max() <= 3
    assert K.random_normal((3, 2)).shape == (3, 2)


def test_the_phase_of_training_chooses():
    assert K.in_train_phase(1, lambda: 2) == 2
    assert K.in_train_phase(lambda: 1, 2, training=True) == 1
    assert K.in_test_phase(1, 2) == 1


def test_a_recurrent_function_keeps_its_state_at_padding():
    inputs, mask = torch.tensor([[[1.0], [2.0], [4.0]], [[1.0], [2.0], [4.0]]]), torch.tensor([[1, 1, 1], [1, 0, 1]])
    start = [torch.zeros(2, 1)]
    last, outputs, states = K.rnn(lambda x, states: (x + states[0], [x + states[0]]), inputs, start, mask=mask)
    assert outputs[..., 0].tolist() == [[1, 3, 7], [1, 1, 5]]
    assert last.tolist() == states[0].tolist() == [[7], [5]]
    _, backwards, _ = K.rnn(lambda x, states: (x, states), inputs, start, go_backwards=True)
    assert backwards[0, :, 0].tolist() == [4, 2, 1]


def test_embeddings_multiply_by_their_table_and_never_mask_the_first_id():
    layer = layers.Embedding(4, 2, mask_zero=True)
    vectors = layer(torch.tensor([[0, 1, 0]]))
    assert vectors._keras_mask.tolist() == [[True, True, False]]
    products = layer(vectors, mode="dense")
    torch.testing.assert_close(products, vectors @ layer.embeddings.value.T)


def test_names_of_keras_are_served_beside_those_of_bert4keras():
    assert layers.Dense is keras.layers.Dense
    assert layers.LayerNormalization is not keras.layers.LayerNormalization
    assert {"Dense", "Loss", "Layer", "K", "sequence_masking"} <= set(layers.__all__)
    assert K.einsum is keras.ops.einsum


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda: K.ctc_batch_cost, r"K\.ctc_batch_cost"),
        (lambda: layers.tf.einsum("ij->ji", 1), r"layers\.tf"),
        (lambda: backend.tf.constant(1), r"backend\.tf"),
        (lambda: backend.sinusoidal_embeddings(torch.arange(3), 4, base=100), "base is 100"),
        (lambda: K.function([], [], updates=[1]), "updates="),
    ],
)
def test_what_is_not_carried_is_refused_by_its_name(use, name):
    with pytest.raises(Unsupported, match=name):
        use()
