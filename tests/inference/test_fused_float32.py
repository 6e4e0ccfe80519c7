"""All blocks at once for one token: what torch gives, block by block."""

import platform
from dataclasses import replace

import pytest
import torch
from test_model import config_of
from torch import nn

from hanmo.config import Sublayer
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.inference.fused import float32
from hanmo.model import Model

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="kernels are for x86")


def changed(*, order=None, **changes):
    config = gpt2_ml_config(vocab_size=61, num_layers=3, hidden_size=96, positions=64, head_dim=32)
    if order is not None:
        changes["order"] = tuple(Sublayer(kind, pre, post) for kind, pre, post in order)
    return replace(config, decoder=replace(config.decoder, **changes))


STACKS = {
    "gpt2_ml": changed(),
    "gpt2": changed(
        order=[("attention", True, False), ("feed_forward", True, False)], final_norm=True, activation="gelu_tanh"
    ),
    "gpt": changed(
        order=[("attention", False, True), ("feed_forward", False, True)], shared_layers=True, activation="relu"
    ),
    "unilm": changed(mask="prefix", segments=2),
    "sinusoidal": changed(position="sinusoidal", positions=None),
    "other sizes": changed(key_dim=16, feed_forward=50, bias=False, score_scale=0.3),
}
FAMILIES = {
    "bert": config_of("bert", mask="prefix"),
    "albert": config_of("albert", mask="prefix"),
    "nezha": config_of("nezha", mask="prefix", relative_clip=9),
    "roformer": config_of("roformer", mask="prefix"),
    "roformer_v2": config_of("roformer_v2", mask="prefix"),
    "t5.1.0": config_of("t5.1.0"),
    "t5.1.1": config_of("t5.1.1"),
    "mt5.1.1": config_of("mt5.1.1", shared_layers=True),
    "t5 of bert4keras": config_of("t5.1.1", cross_positions=True),
    "nezha across": config_of("t5.1.0", position="relative"),
    "no weights": changed(norm_scale=False, norm_bias=False, position="none", positions=None),
}


@pytest.fixture
def taken(monkeypatch):
    """Have small stacks taken too; count the steps."""
    monkeypatch.setattr(float32, "LEAST", 0)
    found, run = [], float32._run
    monkeypatch.setattr(float32, "_run", lambda *given: found.append(1) or run(*given))
    return found


def network(config, layout="out, in"):
    model = Model(config).initialize(1).eval()
    model.main.fused_step = float32.fused_step
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    if layout == "in, out":
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.T.contiguous().T
    if layout == "side by side":  # as GPT-2 keeps query, key and value
        for block in model.main.blocks:
            layers = [block.attention.query, block.attention.key, block.attention.value]
            whole = torch.cat([layer.weight.data.T for layer in layers], 1)
            for layer, part in zip(layers, whole.split([len(layer.weight) for layer in layers], 1), strict=True):
                layer.weight.data = part.T
    return model


@torch.inference_mode()
def logits(model, count=20, unseen=False, padded=False):
    """Give the logits after a prompt and after each of so many ids, and the cache."""
    cache = model.new_cache(rows=1, capacity=40)
    found = []
    for step in range(count + 1):
        ids = torch.tensor([[3 + 2 * step]]) if step else torch.arange(1, 8)[None]
        mask = torch.ones_like(ids)
        mask[0, 0] = not (unseen and step == 0)
        segments = torch.full_like(ids, int(step > 0)) if model.config.main.segments else None
        given = {"segments": segments, "mask": mask.bool(), "cache": cache, "logits": "last"}
        if step == 0 and model.config.is_encoder_decoder:
            given["source"] = torch.arange(9, 21)[None]
            given["source_mask"] = given["source"] != (9 if padded else 0)
        found.append(model(ids, **given).logits[0, 0])
    return torch.stack(found), cache


def assert_steps_equal_torch(model, monkeypatch, taken):
    ours, cache = logits(model)
    assert len(taken) == 20
    monkeypatch.setattr(float32, "has_fused_step", lambda stack, kernel: False)
    theirs, other = logits(model)
    assert len(taken) == 20
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))
    assert cache.length == other.length == 27
    for one, two in zip(cache.keys + cache.values, other.keys + other.values, strict=True):
        torch.testing.assert_close(one[:, :, :27], two[:, :, :27], rtol=0, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", ["out, in", "in, out", "side by side"])
@pytest.mark.parametrize("name", STACKS)
def test_steps_equal_torch(taken, monkeypatch, name, layout, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(float32, "most_threads", lambda: 4)
    assert_steps_equal_torch(network(STACKS[name], layout), monkeypatch, taken)


@pytest.mark.parametrize("layout", ["out, in", "in, out"])
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_of_every_family_equal_torch(taken, monkeypatch, name, layout):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(float32, "most_threads", lambda: 2)
    assert_steps_equal_torch(network(FAMILIES[name], layout), monkeypatch, taken)


def test_changed_weights_are_seen(taken, monkeypatch):
    model = network(STACKS["gpt2_ml"])
    before, _ = logits(model)
    with torch.no_grad():
        model.main.blocks[1].feed_forward.output.weight.mul_(2)
    model.main.blocks[0].attention.query.weight = nn.Parameter(torch.randn(96, 96) / 10)
    ours, _ = logits(model)
    assert len(taken) == 40 and not torch.allclose(before, ours)
    monkeypatch.setattr(float32, "has_fused_step", lambda stack, kernel: False)
    theirs, _ = logits(model)
    assert len(taken) == 40
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_what_does_not_suit_is_left_to_torch(taken, monkeypatch):
    for change in (
        {"activation": "silu"},
        {"score_residual": "cumulative"},
    ):
        logits(network(changed(**change)), 2)
    logits(network(STACKS["gpt2_ml"]).bfloat16(), 2)
    model = network(STACKS["gpt2_ml"])
    logits(model, 2, unseen=True)
    logits(network(FAMILIES["t5.1.1"]), 2, padded=True)
    with torch.inference_mode(False), torch.enable_grad():
        cache = model.new_cache(rows=1, capacity=9)
        model(torch.tensor([[1, 2]]), cache=cache)
        model(torch.tensor([[3]]), cache=cache)
    assert not taken
    seen = []
    model.main.blocks[2].register_forward_hook(lambda *given: seen.append(1))
    logits(model, 2)
    assert not taken and len(seen) == 3
    monkeypatch.undo()
    logits(network(STACKS["gpt2_ml"]), 2)  # too small
    assert not taken
