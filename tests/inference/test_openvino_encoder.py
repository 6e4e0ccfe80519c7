"""Encoders on OpenVINO against the torch network: hidden states, every head, texts of different length."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import assert_near
from test_fused_quantized import of_family

import hanmo.loading
from hanmo.errors import CheckpointError
from hanmo.families import FAMILIES
from hanmo.inference.fused import quantized, support
from hanmo.inference.openvino.engine import open_weights
from hanmo.inference.openvino.model import OpenVinoModel
from hanmo.model import Model

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
KINDS = ("bert", "bert_headsize", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2", "electra")
needs_kernel = pytest.mark.skipif(support.kernels("quantized") is None, reason="AVX2 is missing")
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [31, 32, 33, 34, 35]]


def opened(path, folder, weights="float32"):
    """Load a checkpoint in torch and for OpenVINO."""
    model = hanmo.loading.load(path).model
    return model, OpenVinoModel(model, open_weights(path, weights=weights, folder=folder), threads=1)


def padded(texts=TEXTS):
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    return {"ids": ids, "mask": torch.arange(ids.shape[1]) < lengths[:, None]}


@pytest.mark.parametrize("name", KINDS)
def test_every_output_equals_torch_also_in_padded_rows(tmp_path, name):
    model, encoder = opened(GOLDENS / name / "model.ckpt", tmp_path)
    found = encoder(**padded())
    compared = 0
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = model(torch.tensor([text]))
        for word, value in vars(expected).items():
            near = getattr(found, word)
            assert (near is None) == (value is None)
            if value is not None:
                near = near[row, : len(text)] if value.ndim == 3 else near[row]
                np.testing.assert_allclose(near, value[0], rtol=0, atol=1e-4)
                compared += word != "hidden"
    heads = (model.output is not None) + (model.pooler is not None) + (model.discriminator is not None)
    assert compared >= 3 * heads > 0
    assert encoder(torch.tensor(TEXTS[:1])).hidden.shape == (1, 7, model.config.main.hidden_size)


def test_logits_are_of_all_tokens_of_the_last_or_of_none(tmp_path):
    _, encoder = opened(GOLDENS / "bert" / "model.ckpt", tmp_path)
    ids = torch.tensor([TEXTS[0], TEXTS[0][::-1]])
    every = encoder(ids).logits
    np.testing.assert_allclose(encoder(ids, logits="last").logits, every[:, -1:], rtol=0, atol=1e-4)
    assert encoder(ids, logits="none").logits is None


def test_positions_that_begin_at_a_later_row_equal_torch_also_in_padded_rows(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 9, "type_vocab_size": 1}
    config = FAMILIES["roberta"].huggingface.config(sizes)
    path = hanmo.save(Model(replace(config, initializer=0.5)).initialize(0), tmp_path / "r", form="huggingface").path
    model, encoder = opened(path, tmp_path)
    found = encoder(**padded()).hidden
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = model(torch.tensor([text])).hidden[0]
        np.testing.assert_allclose(found[row, : len(text)], expected, rtol=0, atol=1e-4)


def test_int8_vectors_are_near_float32(tmp_path):
    path = GOLDENS / "bert" / "model.ckpt"
    exact, rounded = (opened(path, tmp_path, weights)[1](**padded()).hidden.numpy() for weights in ("float32", "int8"))
    assert abs(exact - rounded).max() > 1e-4
    config = open_weights(path, weights="int8", folder=tmp_path).config
    assert_near(rounded, exact, config, "int8", to_float32=True)


@needs_kernel
@pytest.mark.parametrize("name", ["bert", "nezha", "roformer"])
def test_few_tokens_are_computed_by_the_fused_step_near_openvino(tmp_path, monkeypatch, name):
    monkeypatch.setattr(support, "LEAST_BYTES", 0)
    config = of_family(name)
    path = hanmo.save(Model(replace(config, initializer=0.1)).initialize(0), tmp_path / "model").path
    model, encoder = opened(path, tmp_path, "int8")
    segments = (torch.arange(7) > 2).long().expand(3, -1) if config.main.segments else None
    given = {**padded(), "segments": segments}
    fused = encoder(**given)
    used, encoder._fused = encoder._fused, None
    found, expected = (each.hidden[given["mask"]] for each in (fused, encoder(**given)))
    assert used is not None and not torch.equal(found, expected)
    assert_near(found, expected, config, "int8")
    with torch.no_grad():
        heads = vars(model.heads(fused.hidden))
    assert all(value is None or torch.equal(getattr(fused, name), value) for name, value in heads.items())
    encoder._fused = quantized.QuantizedStack(encoder._weights, config, 3)
    for most in (16, 0):  # norms of all tokens by every thread, or divided
        monkeypatch.setattr(quantized, "MOST_UNDIVIDED", most)
        assert torch.equal(encoder(**given).hidden, fused.hidden)
    encoder._fused = used
    for row, text in enumerate(TEXTS):
        alone = encoder(torch.tensor([text]), segments=None if segments is None else segments[:1, : len(text)])
        assert torch.equal(alone.hidden[0], fused.hidden[row, : len(text)])
    long = torch.tensor(TEXTS[:1] * 5)
    monkeypatch.setattr(used, "step", None)  # more tokens are read by OpenVINO
    assert encoder(long).hidden.shape == (5, 7, config.main.hidden_size)


def test_a_model_that_is_no_encoder_alone_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"a t5\.1\.1 is no encoder alone; open it with hanmo\.open_writer to write"
    ):
        opened(GOLDENS / "t5_1.1" / "model.ckpt", tmp_path)
