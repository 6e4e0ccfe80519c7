"""A network as a Keras layer computes what the network does, has its sub-layers' outputs, and trains its weights."""

import keras
import numpy as np
import pytest
import torch

from hanmo.compat.bert4keras import configs
from hanmo.compat.bert4keras import models as plain
from hanmo.compat.bert4keras.graph.model import Model
from hanmo.compat.bert4keras.graph.models import build_transformer_model
from hanmo.errors import ConfigError, Unsupported

IDS = np.array([[2, 5, 6, 3, 0], [2, 7, 8, 9, 3]])
SEGMENTS = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
KINDS = {
    "bert": {"with_pool": True, "with_nsp": True, "with_mlm": True},
    "bert unilm": {"application": "unilm"},
    "albert": {"with_pool": True},
    "electra": {"with_discriminator": True},
    "nezha": {},
    "roformer": {"application": "lm"},
    "roformer_v2": {},
    "gpt": {},
    "gpt2": {},
    "gpt2_ml": {},
}


@pytest.fixture
def paths(data):
    return lambda kind: (str(data / "goldens" / kind / "config.json"), str(data / "goldens" / kind / "model.ckpt"))


def inputs_of(model):
    values = {"Segment": SEGMENTS, "Token": IDS}
    return [values[each.name.rpartition("-")[2]] for each in model.inputs]


def as_list(outputs):
    return outputs if isinstance(outputs, list) else [outputs]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_their_parts_joined_anew_equal_those_without_keras(paths, kind):
    name, options = kind.split()[0], KINDS[kind]
    bert = build_transformer_model(*paths(name), model=name, return_keras_model=False, **options)
    inputs = inputs_of(bert.model)
    expected = as_list(plain.build_transformer_model(*paths(name), model=name, **options).predict(inputs))
    for found, right in zip(as_list(bert.model.predict(inputs)), expected, strict=True):
        np.testing.assert_array_equal(found, right)
    hidden = bert.apply_embeddings(bert.inputs)
    for index in range(bert.num_hidden_layers):
        hidden = bert.apply_main_layers(hidden, index)
    joined = Model(bert.inputs, bert.apply_final_layers(hidden))
    for found, right in zip(as_list(joined.predict(inputs)), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)
    assert len({id(each) for each in (*joined.weights, *bert.model.weights)}) == len(bert.model.weights)


def test_a_t5_and_its_two_parts_share_their_weights(paths):
    t5 = build_transformer_model(*paths("t5_1.1"), model="t5.1.1", return_keras_model=False)
    source, target = IDS, IDS[:, :3]
    encoded = t5.encoder.predict(source)
    whole, parts = t5.model.predict([source[1:], target[1:]]), t5.decoder.predict([encoded[1:], target[1:]])
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    t5.model.get_layer("Embedding-Token").embeddings.assign(np.zeros((120, 32)))
    assert not np.allclose(t5.encoder.predict(source), encoded)


def test_sub_layers_give_their_outputs_as_original_ones_do(paths):
    bert = build_transformer_model(*paths("bert"), return_keras_model=False)
    model, last = bert.model, bert.num_hidden_layers - 1
    tokens = model.get_layer("Embedding-Token")
    added, normed = model.layers[-2].get_output_at(-1), model.layers[-1].output
    found = Model(model.inputs, [tokens.output, added, normed, model.output]).predict(inputs_of(model))
    np.testing.assert_array_equal(found[0], tokens.get_weights()[0][IDS])
    gamma, beta = (model.get_layer(f"Transformer-{last}-FeedForward-Norm").weights[i].numpy() for i in (1, 0))
    centred = found[1] - found[1].mean(-1, keepdims=True)
    right = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * gamma + beta
    np.testing.assert_allclose(found[2], right, atol=1e-5)
    np.testing.assert_array_equal(found[2], found[3])
    assert bert.layers["Embedding-Token"] is tokens


def test_shared_layers_have_an_output_for_each_use(paths):
    model = build_transformer_model(*paths("albert"), model="albert")
    layer = model.get_layer("Transformer-FeedForward-Norm")
    first, last = Model(model.inputs, [layer.get_output_at(0), layer.get_output_at(-1)]).predict(inputs_of(model))
    assert not np.allclose(first, last)
    np.testing.assert_array_equal(last, model.predict(inputs_of(model)))
    with pytest.raises(Unsupported, match=r"output 3 of the layer 'Transformer-FeedForward-Norm' .* it has 3 outputs"):
        layer.get_output_at(3)


def test_what_a_sub_layer_lacks_is_an_error_that_names_those_that_have_it(paths):
    model = build_transformer_model(*paths("gpt"), model="gpt")
    with pytest.raises(Unsupported, match=r"'Embedding-Position' is not supported: .* are Embedding-Token, "):
        _ = model.get_layer("Embedding-Position").output
    with pytest.raises(ConfigError, match="'Transformer-0-FeedForward' has no embeddings"):
        _ = model.get_layer("Transformer-0-FeedForward").embeddings
    with pytest.raises(ValueError, match="No such layer: nothing"):
        model.get_layer("nothing")


def test_masks_reach_the_layers_above(paths):
    seen = []

    class Look(keras.layers.Layer):
        supports_masking = True

        def call(self, inputs, mask=None):
            seen.append(mask)
            return inputs

        def compute_output_spec(self, inputs, mask=None):
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    bert = build_transformer_model(*paths("bert"))
    Model(bert.inputs, Look()(bert.output)).predict(inputs_of(bert))
    assert seen[-1].tolist() == [[True, True, True, True, False], [True] * 5]


def test_dropout_acts_in_training_alone(paths):
    model = build_transformer_model(*paths("bert"), hidden_dropout_prob=0.5)
    tensors = [torch.tensor(each) for each in inputs_of(model)]
    with torch.no_grad():
        quiet = [model(tensors, training=False) for _ in range(2)]
        noisy = [model(tensors, training=True) for _ in range(2)]
    assert torch.equal(*quiet) and not torch.equal(*noisy)


def test_a_checkpoint_that_is_loaded_late_reaches_the_variables(paths):
    config, checkpoint = paths("bert")
    keep = [0, 1, 2, 3, *range(5, 90)]
    bert = build_transformer_model(config, return_keras_model=False, keep_tokens=keep)
    variable = bert.model.get_layer("Embedding-Token").embeddings
    parameter, before = variable.value, variable.numpy()
    bert.load_weights_from_checkpoint(checkpoint)
    expected = plain.build_transformer_model(config, checkpoint, keep_tokens=keep)
    assert variable.value is parameter and not np.allclose(variable.numpy(), before)
    np.testing.assert_array_equal(bert.model.predict([IDS, SEGMENTS]), expected.predict([IDS, SEGMENTS]))


def test_a_checkpoint_is_written_with_what_was_trained_and_a_smaller_vocabulary(paths, tmp_path):
    config, checkpoint = paths("bert")
    keep = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    bert = build_transformer_model(config, checkpoint, keep_tokens=keep, return_keras_model=False, with_mlm=True)
    bert.model.compile("adam", "sparse_categorical_crossentropy")
    bert.model.train_on_batch([IDS, SEGMENTS], IDS)
    bert.save_weights_as_checkpoint(str(tmp_path / "new.ckpt"))
    again = plain.build_transformer_model(config, str(tmp_path / "new.ckpt"), vocab_size=len(keep), with_mlm=True)
    np.testing.assert_array_equal(again.predict([IDS, SEGMENTS]), bert.model.predict([IDS, SEGMENTS]))


def test_a_mapping_of_names_is_refused(tmp_path, paths):
    made = build_transformer_model(*paths("bert"), return_keras_model=False)
    mapping = {"Embedding-Token": ["table"]}
    with pytest.raises(Unsupported, match=r"a mapping of 1 layers was given; .* set_weights of model\.get_layer"):
        made.load_weights_from_checkpoint(paths("bert")[1], mapping=mapping)
    with pytest.raises(Unsupported, match="a mapping of 1 layers was given"):
        made.save_weights_as_checkpoint(str(tmp_path / "new.ckpt"), mapping)
    assert list(tmp_path.iterdir()) == []


def test_a_condition_is_a_symbolic_tensor_of_another_input(paths):
    number = keras.Input((1,))
    vector = keras.layers.Reshape((8,))(keras.layers.Embedding(2, 8)(number))
    options = {"layer_norm_cond": vector, "additional_input_layers": number, "layer_norm_cond_hidden_size": 4}
    model = build_transformer_model(*paths("bert"), application="lm", **options)
    assert [each.name for each in model.inputs[:2]] == ["Input-Token", "Input-Segment"] and len(model.inputs) == 3
    found = model.predict([IDS, SEGMENTS, [[0], [1]]])
    expected = plain.build_transformer_model(*paths("bert"), application="lm").predict([IDS, SEGMENTS])
    np.testing.assert_allclose(found, expected, atol=1e-6)  # a condition's weights begin with zeros


def test_ids_are_exact_in_mixed_precision(paths):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_transformer_model(paths("bert")[0], vocab_size=1000)
        ids = np.full((1, 3), 997)  # not a bfloat16
        rows = Model(model.inputs, model.get_layer("Embedding-Token").output).predict([ids, ids * 0])
        np.testing.assert_array_equal(rows[0, 0], model.get_layer("Embedding-Token").get_weights()[0][997])
        assert np.isfinite(model.predict([ids, ids * 0])).all()
    finally:
        keras.config.set_dtype_policy("float32")


def test_other_dtypes_of_weights_are_refused_aloud(paths, caplog):
    configs.set_weights_dtype("int8")
    try:
        model = build_transformer_model(*paths("gpt"), model="gpt")
        build_transformer_model(*paths("gpt"), model="gpt")
    finally:
        configs.set_weights_dtype(None)
    assert {each.dtype for each in model.weights} == {"float32"}
    assert [each.getMessage() for each in caplog.records] == [
        "hanmo: computing in float32, not in int8: Keras trains the model"
    ]
