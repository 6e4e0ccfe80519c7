"""A checkpoint in 8 bits is a quarter of the size, reads as numbers everywhere, and is refused when it is damaged."""

import json
import struct

import numpy as np
import pytest
import torch

import hanmo
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.safetensors import Safetensors
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, CorruptFile
from hanmo.inference.openvino.engine import open_weights
from hanmo.model import Model


@pytest.fixture
def model(data):
    return hanmo.load(data / "goldens" / "gpt2_ml_original").model


def test_matrices_come_back_within_half_a_step_and_all_else_as_it_was(model, tmp_path):
    hanmo.save(model, tmp_path / "small", dtype=torch.int8)
    again = dict(hanmo.load(tmp_path / "small").model.named_parameters())
    matrices = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            step = parameter.abs().amax(1, keepdim=True) / 127
            assert ((again[name] - parameter).abs() <= step / 2 + 1e-9).all(), name
            matrices += 1
        else:
            assert torch.equal(again[name], parameter), name
    assert matrices > 10
    stored = Safetensors(tmp_path / "small" / "model.safetensors").tensors
    assert {info.dtype for name, info in stored.items() if ".scale" not in name} == {"int8", "float32"}


def test_rounding_again_changes_nothing(model, tmp_path):
    hanmo.save(model, tmp_path / "one", dtype=torch.int8)
    hanmo.save(hanmo.load(tmp_path / "one").model, tmp_path / "two", dtype=torch.int8)
    one, two = (Safetensors(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, info in one.tensors.items():
        if info.dtype == "int8":
            assert np.array_equal(one.read(name), two.read(name)), name


def test_the_cpu_engine_writes_from_it(model, tmp_path):
    hanmo.save(model, tmp_path / "small", dtype=torch.int8)
    built = open_weights(tmp_path / "small", weights="int8", folder=tmp_path / "cache")
    assert ModelConfig.from_json(built.config.to_json()) == model.config


def test_scales_that_are_missing_or_others_are_refused(model, tmp_path):
    hanmo.save(model, tmp_path / "small", dtype=torch.int8)
    path = tmp_path / "small" / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    for name, wrong in (("other.scale", "none"), ("token.weight.scale", "float32[1, 120]")):
        changed = dict(header)
        claim = changed.pop("token.weight.scale")
        changed[name] = claim if name == "other.scale" else {**claim, "shape": claim["shape"][::-1]}
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
        with pytest.raises(CorruptFile, match=r"token.weight is int8\[120, 32\] and its scales are " + wrong[:4]):
            open_source(path)


def test_other_forms_do_not_take_it(model, tmp_path):
    with pytest.raises(ConfigError, match="dtype is int8, form is 'tensorflow'"):
        hanmo.save(model, tmp_path / "no", form="tensorflow", dtype=torch.int8)
    assert isinstance(model, Model) and not (tmp_path / "no").exists()
