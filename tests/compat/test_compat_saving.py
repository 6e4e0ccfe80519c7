"""Models of bert4keras's face are saved, loaded and cut to some outputs as scripts do it with Keras."""

import numpy as np
import pytest

import hanmo.compat.bert4keras.models as ours
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.compat.bert4keras import backend
from hanmo.compat.bert4keras.configs import Settings
from hanmo.compat.bert4keras.keras import keras
from hanmo.errors import CheckpointError, ConfigError, CorruptFile, MissingFile, TensorMismatch, Unsupported

TOKENS = [np.array([[2, 5, 6, 3]]), np.zeros((1, 4), int)]


@pytest.fixture
def build(data):
    def build(kind="bert", **arguments):
        folder = data / "goldens" / kind
        return ours.build_transformer_model(str(folder / "config.json"), str(folder / "model.ckpt"), **arguments)

    return build


def close(one, two):
    np.testing.assert_allclose(one, two, rtol=0, atol=2e-5)


def test_a_model_of_some_outputs_is_chosen_from_another(build):
    whole = build(with_pool="linear", application="unilm", return_keras_model=False)
    pooled, written = whole.model.predict(TOKENS)
    encoder = keras.models.Model(whole.inputs, whole.outputs[0])
    writer = keras.models.Model(whole.model.inputs, whole.model.outputs[1])
    close(encoder.predict(TOKENS), pooled)
    close(writer.predict(TOKENS), written)
    assert encoder.prefix is None and writer.prefix is not None
    both = keras.models.Model(whole.inputs, [whole.outputs[1], whole.outputs[0]])
    close(keras.models.Model(both.inputs, both.outputs[1]).predict(TOKENS), pooled)
    assert both.settings.chosen == [1, 0]


def test_a_model_of_anything_else_is_a_new_graph(build):
    model, other = build(), build()
    for inputs, outputs in ((model.inputs, other.output), (model.inputs, 5), (model.input, model.input), ([], [])):
        with pytest.raises(Unsupported, match=r"the inputs and outputs of one bert4keras model"):
            keras.models.Model(inputs, outputs)
    with pytest.raises(Unsupported, match="has 2 inputs and 1 are given"):
        keras.models.Model(model.inputs[0], model.output)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("bert", {"with_mlm": True, "with_nsp": True}),
        ("bert", {"application": "unilm"}),
        ("albert", {"model": "albert"}),
        ("gpt2_ml", {"model": "gpt2_ml"}),
        ("t5_1.1", {"model": "t5.1.1"}),
    ],
)
def test_a_saved_model_predicts_the_same(tmp_path, build, kind, arguments):
    model = build(kind, **arguments)
    inputs = [np.array([[2, 5, 6, 3]]), np.array([[0, 0, 0, 1]])][: len(model.input_names)]
    for name in ("test.model", "again.h5"):
        model.save(str(tmp_path / name))
        loaded = keras.models.load_model(str(tmp_path / name), custom_objects={}, compile=False)
        assert loaded.settings == model.settings
        one, two = loaded.predict(inputs), model.predict(inputs)
        for a, b in zip(one, two, strict=True) if isinstance(one, list) else [(one, two)]:
            close(a, b)
        model = loaded
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.h5", "test.model"]


def test_weights_alone_go_into_a_model_of_the_same_shape(tmp_path, build):
    model, other = build(), build()
    other.get_layer("Embedding-Token").set_weights([np.ones((120, 32), np.float32)])
    model.save_weights(tmp_path / "best.weights")
    other.load_weights(tmp_path / "best.weights")
    close(other.predict(TOKENS), model.predict(TOKENS))


def test_weights_of_another_model_are_refused_or_taken_by_name(tmp_path, build):
    small, model = build(keep_tokens=list(range(7))), build(with_mlm=True)
    small.save_weights(tmp_path / "w")
    with pytest.raises(TensorMismatch, match=r"token\.weight is \[7, 32\] in .*; this model has \[120, 32\]"):
        model.load_weights(tmp_path / "w")
    with pytest.raises(TensorMismatch, match=r"\[7, 32\]"):
        model.load_weights(tmp_path / "w", by_name=True)
    model.load_weights(tmp_path / "w", by_name=True, skip_mismatch=True)
    build().save_weights(tmp_path / "w")
    with pytest.raises(TensorMismatch, match=r"has no output\.\S+; was it saved from another model"):
        model.load_weights(tmp_path / "w")
    model.load_weights(tmp_path / "w", by_name=True)


def test_files_that_are_no_saved_model_are_refused(tmp_path, build):
    (tmp_path / "old.h5").write_bytes(b"\x89HDF\r\n\x1a\n and so on")
    with pytest.raises(Unsupported, match=r"old\.h5 is an HDF5 file of Keras's"):
        keras.models.load_model(tmp_path / "old.h5")
    with pytest.raises(MissingFile, match="nothing"):
        keras.models.load_model(tmp_path / "nothing")
    write_safetensors(tmp_path / "bare", [("x", np.zeros(3, np.float32))])
    with pytest.raises(CheckpointError, match="bare holds tensors alone"):
        keras.models.load_model(tmp_path / "bare")
    config = build().network.config.to_json()
    for settings in ("[]", "{", '{"name": "bert"}'):
        words = {"hanmo": config, "bert4keras": settings}
        write_safetensors(tmp_path / "bad", [("x", np.zeros(3, np.float32))], metadata=words)
        with pytest.raises(CorruptFile, match="bad: its header does not tell the model's outputs"):
            keras.models.load_model(tmp_path / "bad")
    assert set(Settings.__dataclass_fields__) > {"name", "chosen"}


def test_a_model_is_not_saved_over_a_folder_or_what_must_stay(tmp_path, build):
    with pytest.raises(CheckpointError, match="is a folder; give the path of a new file"):
        build().save(tmp_path)
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(CheckpointError, match="kept exists"):
        build().save(tmp_path / "kept", overwrite=False)
    assert (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("bert", {"with_mlm": True, "with_nsp": True}),
        ("gpt2_ml", {"model": "gpt2_ml"}),
        ("t5_1.1", {"model": "t5.1.1"}),
    ],
)
def test_weights_become_a_checkpoint_of_the_original_form(tmp_path, data, build, kind, arguments):
    made = build(kind, return_keras_model=False, **arguments)
    made.save_weights_as_checkpoint(str(tmp_path / "model.ckpt"))
    with open_source(data / "goldens" / kind / "model.ckpt") as old, open_source(tmp_path / "model.ckpt") as new:
        assert len(new.tensors) > 20
        for name in new.tensors:
            np.testing.assert_array_equal(new.read(name), old.read(name), err_msg=name)
    made.save_weights_as_checkpoint(str(tmp_path / "half.ckpt"), dtype="float16")
    with open_source(tmp_path / "half.ckpt") as half:
        assert {info.dtype for info in half.tensors.values()} == {"float16"}


def test_a_transformer_reads_another_checkpoint(build, data):
    made, read = build(return_keras_model=False), build(return_keras_model=False)
    made.model.get_layer("Embedding-Token").set_weights([np.ones((120, 32), np.float32)])
    made.load_weights_from_checkpoint(str(data / "goldens" / "bert" / "model.ckpt"))
    close(made.model.predict(TOKENS), read.model.predict(TOKENS))


def test_a_mapping_of_names_is_refused(tmp_path, build, data):
    made = build(return_keras_model=False)
    mapping = {"Embedding-Token": ["table"]}
    with pytest.raises(Unsupported, match=r"a mapping of 1 layers was given; .* set_weights of model\.get_layer"):
        made.load_weights_from_checkpoint(str(data / "goldens" / "bert" / "model.ckpt"), mapping=mapping)
    with pytest.raises(Unsupported, match="a mapping of 1 layers was given"):
        made.save_weights_as_checkpoint(str(tmp_path / "new.ckpt"), mapping)
    assert list(tmp_path.iterdir()) == []


def test_weights_can_be_loaded_as_bfloat16(build):
    expected = build("gpt2_ml", model="gpt2_ml").predict(TOKENS[0])
    backend.set_weights_dtype("bfloat16")
    try:
        model = build("gpt2_ml", model="gpt2_ml")
    finally:
        backend.set_weights_dtype(None)
    assert {str(weight.dtype) for weight in model.network.parameters()} == {"torch.bfloat16"}
    result = model.predict(TOKENS[0])
    assert result.dtype == np.float32 and 0 < np.abs(result - expected).max() < 0.05
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-5)
    with pytest.raises(ConfigError, match="dtype of the weights is 'int7'"):
        backend.set_weights_dtype("int7")


def test_a_model_shows_its_layers_and_counts_its_weights(build, capsys):
    build().summary()
    told = capsys.readouterr().out
    assert "Transformer-0-MultiHeadSelfAttention" in told and f"Total params: {build().count_params():,}" in told
