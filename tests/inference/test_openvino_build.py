"""How weights are rounded, and what a checkpoint must be to be built from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from opening import open_engine

import hanmo.loading
from hanmo.checkpoint.safetensors import Safetensors, write_safetensors
from hanmo.checkpoint.save import save
from hanmo.errors import ConfigError, CorruptFile, TensorMismatch
from hanmo.inference.openvino.build import build, round_int4, round_int8, scales_int4, scales_int8
from hanmo.inference.openvino.engine import OpenVinoEngine
from hanmo.inference.openvino.weights import Weights

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unpacked(packed):
    halves = torch.stack((packed & 15, packed >> 4), -1).flatten(1).to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)


def test_int8_is_within_half_a_step_of_every_number():
    weights = random(7, 33) * torch.logspace(-6, 3, 7)[:, None]
    weights[3] = 0
    scales = scales_int8(weights)
    off = (round_int8(weights, scales) * scales - weights).abs()
    assert (off <= scales * 0.5001).all() and (off[3] == 0).all()


def int4_errors(weights, scales):
    """Return the squared error of each group, given the scales [out, groups], in float64."""
    grouped, scales = weights.view(*scales.shape, -1).double(), scales.double()[..., None]
    return ((grouped / scales).round().clamp(-8, 7) * scales - grouped).square().sum(-1)


@pytest.mark.parametrize("group", [32, 128])
def test_int4_uses_all_levels(group):
    weights = random(50, 256)
    weights[4] = 0
    scales = scales_int4(weights, group)
    whole = unpacked(round_int4(weights, scales))
    assert scales.shape == (50, 256 // group) and set(whole.unique().tolist()) == set(range(-8, 8))
    back = (whole.view(50, -1, group) * scales[..., None]).flatten(1)
    found = (back - weights).square().view(50, -1, group).sum(-1).double()
    torch.testing.assert_close(found, int4_errors(weights, scales), rtol=1e-4, atol=0)
    assert (back[4] == 0).all()


@pytest.mark.parametrize("group", [32, 128])
def test_int4_scales_are_the_best_of_several_in_every_group(group):
    weights = random(128, 1024)
    errors = int4_errors(weights, scales_int4(weights, group))
    grouped = weights.view(128, -1, group)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
    for factor in (1.0, 0.95, 0.9, 0.85, 0.8, -1.0, -0.95, -0.9):
        # Errors are compared in float32: of a difference of half a step between numbers of 8, 2**-23 is 2**-19.
        assert (errors <= int4_errors(weights, largest / -8 * factor) * (1 + 2**-16)).all()
    # Rounding errors are uniform: a step² / 12 each, but for the largest number, which is exact at a scale of max / 7.
    # Steps of 0.95 max / 8 round the others more finely and cut the largest to 8 of its 8 / 0.95 steps.
    plain = (group - 1) / 12 / 7**2
    shorter = ((group - 1) / 12 + (8 / 0.95 - 8) ** 2) * (0.95 / 8) ** 2
    assert errors.sum() < shorter / plain * int4_errors(weights, largest / 7).sum()


@pytest.mark.parametrize(("weights", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8")])
def test_the_file_holds_what_the_checkpoint_held(tmp_path, weights, dtype):
    model = hanmo.loading.load(GOLDENS / "gpt2_ml" / "model.ckpt").model
    open_engine(GOLDENS / "gpt2_ml" / "model.ckpt", weights=weights, folder=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    with Safetensors(path) as file:
        name = "decoder.blocks.1.attention.query_key_value"
        attention = model.decoder.blocks[1].attention
        expected = torch.cat([each.weight for each in (attention.query, attention.key, attention.value)])
        assert file.tensors[f"{name}.weight"].dtype == dtype
        found = torch.from_numpy(file.read(f"{name}.weight"))
        if weights == "bfloat16":
            torch.testing.assert_close(found.view(torch.bfloat16), expected.bfloat16())
        elif weights == "int8":
            scales = torch.from_numpy(file.read(f"{name}.weight.scale"))
            torch.testing.assert_close(found * scales, expected, rtol=0, atol=scales.max().item() * 0.51)
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        expected = torch.cat([each.bias for each in (attention.query, attention.key, attention.value)])
        np.testing.assert_array_equal(file.read(f"{name}.bias"), expected.detach())


@pytest.mark.parametrize(("kind", "mask"), [("gpt2_ml", None), ("albert_unshared", "causal"), ("t5_1.1", None)])
def test_every_format_gives_the_same_engine(tmp_path, kind, mask):
    loaded = hanmo.loading.load(GOLDENS / kind / "model.ckpt")
    save(loaded.model, tmp_path / "own", form="safetensors")
    logits = []
    for path in (GOLDENS / kind / "model.ckpt", tmp_path / "own"):
        engine = open_engine(path, weights="float32", mask=mask, folder=tmp_path / "built")
        logits.append(engine.prefill([[5, 6, 7]], room=3)[1])
    np.testing.assert_array_equal(*logits)


def copy(tmp_path, **changes):
    folder = shutil.copytree(GOLDENS / "gpt2_ml", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder / "model.ckpt"


def test_a_config_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.ckpt: config.json says intermediate_size is 65"):
        open_engine(copy(tmp_path, intermediate_size=65), folder=tmp_path / "built")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("decoder.blocks.1.attention.key.weight"),
            r"lacks decoder\.blocks\.1\.attention\.key\.weight",
        ),
        (lambda tensors: tensors.update(other=np.zeros(3, np.float32)), "holds the unknown other"),
    ],
)
def test_tensors_that_lack_or_are_too_many_are_named(tmp_path, change, message):
    save(hanmo.loading.load(GOLDENS / "gpt2_ml" / "model.ckpt").model, tmp_path / "own", form="safetensors")
    (path,) = (tmp_path / "own").glob("*.safetensors")
    with Safetensors(path) as file:
        tensors = {name: file.read(name).copy() for name in file.tensors}
    change(tensors)
    write_safetensors(path, tensors.items())
    with pytest.raises(TensorMismatch, match=message):
        build(tmp_path / "own", tmp_path / "built.safetensors", weights="int8")


def test_a_shape_that_the_configuration_does_not_make_is_named(tmp_path):
    save(hanmo.loading.load(GOLDENS / "gpt2_ml" / "model.ckpt").model, tmp_path / "own", form="safetensors")
    path = tmp_path / "own" / "hanmo.json"
    path.write_text(path.read_text("utf-8").replace('"positions": 48', '"positions": 47'), "utf-8")
    with pytest.raises(ConfigError, match=r"is \[48, 32\]; the configuration makes it \[47, 32\]"):
        build(tmp_path / "own", tmp_path / "built.safetensors", weights="int8")


def test_a_file_of_another_kind_is_refused_naming_it(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(2, np.float32)}.items())
    with pytest.raises(CorruptFile, match=r"x\.safetensors is not a file of the engine"):
        OpenVinoEngine(Weights(tmp_path / "x.safetensors"))
