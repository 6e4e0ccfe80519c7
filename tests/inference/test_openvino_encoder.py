"""Encoders on OpenVINO against the torch network: hidden states, every head, texts of different length."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import assert_near

import hanmo.loading
from hanmo.errors import CheckpointError
from hanmo.families import FAMILIES
from hanmo.inference.openvino.engine import OpenVinoEncoder, open_weights
from hanmo.model import Model

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
KINDS = ("bert", "bert_headsize", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2", "electra")
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [31, 32, 33, 34, 35]]


def opened(name, folder, weights="float32"):
    return OpenVinoEncoder(open_weights(GOLDENS / name / "model.ckpt", weights=weights, folder=folder), threads=1)


@pytest.mark.parametrize("name", KINDS)
def test_every_output_equals_torch_also_in_padded_rows(tmp_path, name):
    model = hanmo.loading.load(GOLDENS / name / "model.ckpt").model
    places = [(0, 3), (1, 2), (2, 0)]
    encoder = opened(name, tmp_path)
    found = encoder.read(TEXTS, places=places)
    assert found["mask"].sum(1).tolist() == [7, 3, 5]
    compared = 0
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = model(torch.tensor([text]))
        np.testing.assert_allclose(found["hidden"][row, : len(text)], expected.hidden[0], rtol=0, atol=1e-4)
        for word in ("pooled", "nsp"):
            if (value := getattr(expected, word)) is not None:
                np.testing.assert_allclose(found[word][row], value[0], rtol=0, atol=1e-4)
                compared += 1
        if expected.discriminator is not None:
            judged = found["discriminator"][row, : len(text)]
            np.testing.assert_allclose(judged, expected.discriminator[0], rtol=0, atol=1e-4)
            compared += 1
        if expected.logits is not None:
            np.testing.assert_allclose(found["logits"][row], expected.logits[0, places[row][1]], rtol=0, atol=1e-4)
            compared += 1
    heads = (model.output is not None) + (model.pooler is not None) + (model.discriminator is not None)
    assert compared >= 3 * heads > 0
    assert encoder.read(TEXTS[:1])["hidden"].shape == (1, 7, model.config.main.hidden_size)


def test_positions_that_begin_at_a_later_row_equal_torch_also_in_padded_rows(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 9, "type_vocab_size": 1}
    config = FAMILIES["roberta"].huggingface.config(sizes)
    model = Model(replace(config, initializer=0.5)).initialize(0).eval()
    path = hanmo.save(model, tmp_path / "roberta", form="huggingface").path
    found = OpenVinoEncoder(open_weights(path, weights="float32", folder=tmp_path), threads=1).read(TEXTS)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = model(torch.tensor([text])).hidden[0]
        np.testing.assert_allclose(found["hidden"][row, : len(text)], expected, rtol=0, atol=1e-4)


def test_int8_vectors_are_near_float32(tmp_path):
    exact, rounded = (opened("bert", tmp_path, weights).read(TEXTS)["hidden"] for weights in ("float32", "int8"))
    assert abs(exact - rounded).max() > 1e-4
    config = open_weights(GOLDENS / "bert" / "model.ckpt", weights="int8", folder=tmp_path).config
    assert_near(rounded, exact, config, "int8", to_float32=True)


def test_a_model_that_is_no_encoder_alone_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a t5\.1\.1 is no encoder alone; open it with OpenVinoEngine to write"):
        opened("t5_1.1", tmp_path)
