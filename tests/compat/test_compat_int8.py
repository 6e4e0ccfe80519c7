"""Scripts in int8 and int4: the CPU engine gives what the network gives, and whatever it cannot is said."""

import os
from pathlib import Path

import numpy as np
import pytest
from rounding import assert_near
from test_compat_prefix import GOLDENS, KINDS, build, change, inputs_of, recomputed
from typer.testing import CliRunner

import hanmo.compat.bert4keras.models as models
from hanmo.cli.app import app
from hanmo.compat.bert4keras import backend
from hanmo.compat.bert4keras.keras import keras
from hanmo.errors import ConfigError, PromptError, TensorMismatch, Unsupported
from hanmo.inference.openvino.rows import OpenVinoRows

SUPPORTED = [kind for kind in KINDS if kind not in ("bert condition", "t5", "t5 decoder", "mt5")]
TOKENS = np.array([[3, 4, 5, 0, 6, 7, 8]])


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    """Keep built files in one folder for all tests, and leave no choice of weights behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "built"))
    yield
    backend.set_weights_dtype(None)


def quantized(kind, weights="int8"):
    backend.set_weights_dtype(weights)
    model = build(kind)
    backend.set_weights_dtype(None)
    return model


@pytest.fixture
def seen(monkeypatch):
    """List the tokens that go through the engine."""
    found, run = [], OpenVinoRows.run
    monkeypatch.setattr(
        OpenVinoRows, "run", lambda rows, ids, **given: found.append(ids.size) or run(rows, ids, **given)
    )
    return found


def test_the_battery_has_every_kind_that_is_supported():
    assert len(SUPPORTED) == 11


@pytest.mark.parametrize("kind", SUPPORTED)
def test_the_engine_with_exact_weights_gives_what_torch_gives_whatever_is_asked_in_turn(kind, monkeypatch):
    monkeypatch.setattr(models, "QUANTIZED", ("float32",))
    plain, model = build(kind), quantized(kind, "float32")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, model.config.vocab_size, (1, 4))
        arrays = inputs_of(plain, tokens, rng)
        for _ in range(8):
            expected = recomputed(plain, arrays)
            result, last = (model.predict, model.predict_last) if rng.integers(0, 2) else (model.predict_last,) * 2
            for each in (result(arrays), last(arrays)):
                assert each.dtype == np.float32
                np.testing.assert_allclose(each, expected[:, -1] if each.ndim == 2 else expected, rtol=0, atol=2e-5)
            tokens = change(tokens, rng, model.config.vocab_size)
            arrays = inputs_of(plain, tokens, np.random.default_rng(seed) if rng.integers(0, 3) else rng)
    assert model._quantized is not None and model._fill is not None


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["gpt2_ml", "bert unilm"])
def test_quantized_predictions_are_near_the_networks_own(kind, weights):
    plain, model = build(kind), quantized(kind, weights)
    arrays = inputs_of(plain, np.repeat(TOKENS, 3, 0), np.random.default_rng(0))
    found, expected = model.predict(arrays), plain.predict(arrays)
    assert abs(found - expected).max() > 1e-4
    found, expected = (np.log(each) - np.log(each).mean(-1, keepdims=True) for each in (found, expected))
    assert_near(found, expected, plain.config, weights, to_float32=True)  # logits but for a constant in each row
    np.testing.assert_allclose(model.predict(arrays).sum(-1), 1, rtol=0, atol=1e-5)


def test_only_new_tokens_go_through_the_engine(seen):
    model = quantized("gpt2_ml")
    model.predict(TOKENS)
    tokens = np.concatenate([np.repeat(TOKENS, 3, 0), [[1], [2], [3]]], 1)
    model.predict(tokens)  # one row becomes three
    model.predict_last(np.concatenate([tokens[[2, 0]], [[1], [2]]], 1))  # one has ended, two change places
    model.predict_last(np.concatenate([tokens[[2, 0], :5], [[9, 9]] * 2], 1))  # go back to the fifth token
    assert seen == [7, 3, 2, 4]


def test_many_rows_go_through_the_engine_in_batches(seen):
    model = quantized("gpt2_ml")
    tokens = np.random.default_rng(0).integers(1, 100, (5, 4))
    assert model.predict(tokens, batch_size=2).shape == (5, 4, model.config.vocab_size)
    assert seen == [8, 8, 4]


def test_weights_are_read_when_they_are_asked_for_and_computing_stays_quantized(seen):
    plain, model = build("gpt2_ml"), quantized("gpt2_ml")
    before = model.predict(TOKENS)
    assert model.count_params() == plain.count_params() and model._fill is not None
    (own,), (other,) = (each.get_layer("Embedding-Token").get_weights() for each in (model, plain))
    np.testing.assert_array_equal(own, other)
    model.prefix.forget()
    np.testing.assert_array_equal(model.predict(TOKENS), before)
    assert seen == [7, 7]


def test_changed_weights_are_computed_as_they_are_and_that_is_said(caplog):
    plain, model = build("gpt2_ml"), quantized("gpt2_ml")
    model.predict(TOKENS)
    for each in (plain, model):
        layer = each.get_layer("Embedding-Token")
        layer.set_weights([layer.get_weights()[0] * 2])
    np.testing.assert_allclose(model.predict(TOKENS), plain.predict(TOKENS), rtol=0, atol=2e-5)
    model.predict(TOKENS)
    assert caplog.text.count("not in int8: the model's weights were changed") == 1


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("bert", {}, "the model does not write"),
        ("bert", {"with_mlm": True}, "the model does not write"),
        ("bert", {"application": "lm", "with_pool": True}, "the model does not write"),
        ("bert", {"application": "lm", "layer_norm_cond": 6}, "its norms are conditional"),
        ("t5_1.1", {"model": "t5.1.1"}, "the model has an encoder and a decoder"),
        ("gpt2_ml", {"model": "gpt2_ml", "keep_tokens": list(range(50))}, "keep_tokens or compound_tokens change its"),
    ],
)
def test_what_the_engine_does_not_carry_is_computed_as_it_is_and_said_once(kind, arguments, says, caplog):
    backend.set_weights_dtype("int8")
    config, checkpoint = str(GOLDENS / kind / "config.json"), str(GOLDENS / kind / "model.ckpt")
    model = models.build_transformer_model(config, checkpoint, **arguments)
    assert model._quantized is None and {str(each.dtype) for each in model.network.parameters()} == {"torch.float32"}
    assert len(caplog.records) == 1 and f"not in int8: {says}" in caplog.records[0].message


def test_a_checkpoint_with_tensors_that_nothing_knows_is_computed_as_it_is(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise TensorMismatch("model.ckpt holds the unknown extra")

    monkeypatch.setattr("hanmo.inference.openvino.engine.open_weights", refuse)
    model = quantized("gpt2_ml")
    np.testing.assert_allclose(model.predict(TOKENS), build("gpt2_ml").predict(TOKENS), rtol=0, atol=2e-5)
    assert "not in int8: model.ckpt holds the unknown extra; int8 is for GPT" in caplog.text


def test_weights_from_elsewhere_are_computed_as_they_are_and_that_is_said(tmp_path, caplog):
    plain = build("gpt2_ml")
    plain.save(tmp_path / "saved")
    backend.set_weights_dtype("int4")
    saved = keras.models.load_model(tmp_path / "saved")
    config = str(GOLDENS / "gpt2_ml" / "config.json")
    later = models.build_transformer_model(config, model="gpt2_ml", return_keras_model=False)
    later.load_weights_from_checkpoint(str(GOLDENS / "gpt2_ml" / "model.ckpt"))
    for model in (saved, later.model):
        np.testing.assert_allclose(model.predict(TOKENS), plain.predict(TOKENS), rtol=0, atol=2e-5)
    assert "saved was saved by model.save" in caplog.text
    assert "not in int4: the checkpoint was given after the model was built" in caplog.text


def test_choosing_all_outputs_keeps_what_computes_them():
    model = quantized("gpt2_ml")
    assert keras.models.Model(model.inputs, model.outputs)._quantized is not None


@pytest.mark.parametrize(
    ("kind", "arrays", "error", "says"),
    [
        ("gpt2_ml", [np.ones((1, 49))], PromptError, "the text has 49 tokens; this model knows 48 positions"),
        ("bert lm", [np.ones((1, 3)), [[0, 1, 2]]], ConfigError, "Input-Segment holds 2; the model knows 0 … 1"),
        ("bert lm", [np.ones((1, 3)), [[0, 1, -1]]], ConfigError, "Input-Segment holds -1"),
        (
            "bert positions",
            [np.ones((1, 3)), np.zeros((1, 3)), [[0, 1, 99]]],
            ConfigError,
            "Input-Position holds 99; the model knows 0 … ",
        ),
    ],
)
def test_inputs_out_of_range_are_refused(kind, arrays, error, says):
    with pytest.raises(error, match=says):
        quantized(kind).predict(arrays)


def test_a_forked_process_is_told_to_load_its_own(monkeypatch):
    model = quantized("gpt2_ml")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(Unsupported, match="cannot compute in a forked process; load it there"):
        model.predict(TOKENS)


def test_an_unknown_dtype_is_refused_naming_those_there_are():
    with pytest.raises(ConfigError, match="is 'int3'; expected 'float32', 'bfloat16', 'int8', 'int4' or None"):
        backend.set_weights_dtype("int3")


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_script_computes_in_what_the_command_says(weights, tmp_path):
    folder = GOLDENS / "gpt2_ml"
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from bert4keras.models import build_transformer_model\n"
        "model = build_transformer_model(sys.argv[1] + '/config.json', sys.argv[1] + '/model.ckpt', model='gpt2_ml')\n"
        "ids = np.array([[3, 4, 5]])\n"
        "for _ in range(5):\n"
        "    ids = np.append(ids, model.predict(ids)[:, -1].argmax(-1)[:, None], 1)\n"
        "print(ids.tolist(), model._quantized.dtype)\n",
        "utf-8",
    )
    first, second = (CliRunner().invoke(app, ["run", "--weights", weights, str(script), str(folder)]) for _ in range(2))
    assert first.exit_code == 0 and first.stdout == second.stdout and first.stdout.endswith(f"] {weights}\n")


def test_that_weights_are_quantized_is_said_the_first_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        quantized("gpt2_ml")
    (record,) = caplog.records
    assert "model.ckpt to int8, once; the result is kept ('hanmo cache' lists it)" in record.message
    assert len(list(Path(tmp_path, "hanmo").glob("*.safetensors"))) == 1
