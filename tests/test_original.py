"""What the original gpt2-ml network computed: logits, cache layout, loss and every gradient, through hanmo itself."""

import numpy as np
import pytest
import torch
from exported import exported
from torch.nn import functional as F

import hanmo.loading
from hanmo.families import FAMILIES


@pytest.fixture(scope="module")
def folder(data):
    return data / "goldens" / "gpt2_ml_original"


@pytest.fixture(scope="module")
def arrays(folder):
    return np.load(folder / "cases.npz")


@pytest.fixture(scope="module")
def model(folder):
    return hanmo.loading.load(folder / "model.ckpt").model


@pytest.mark.parametrize("case", ["plain", "pad", "len48", "len1"])
def test_logits_equal_the_original_which_masks_nothing_but_the_future(model, arrays, case):
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays[f"{case}/in/tokens"]).long()).logits
    np.testing.assert_allclose(logits, arrays[f"{case}/out/logits"], rtol=0, atol=2e-5)


def test_cache_holds_the_original_keys_and_values(model, arrays):
    ids = torch.from_numpy(arrays["plain/in/tokens"]).long()
    theirs = arrays["plain/out/new_kvs"]  # [batch, layers, 2, heads, seq, head_dim]
    cache = model.new_cache(rows=len(ids), capacity=ids.shape[1])
    with torch.no_grad():
        model(ids, cache=cache)
    for num_layers in range(model.config.main.num_layers):
        np.testing.assert_allclose(cache.keys[num_layers], theirs[:, num_layers, 0], rtol=0, atol=2e-5)
        np.testing.assert_allclose(cache.values[num_layers], theirs[:, num_layers, 1], rtol=0, atol=2e-5)


def test_loss_and_all_gradients_equal_the_original(folder, arrays):
    model = hanmo.loading.load(folder / "model.ckpt").model
    ids = torch.from_numpy(arrays["train/in/tokens"]).long()
    logits = model(ids[:, :-1]).logits.flatten(0, 1)
    targets = ids[:, 1:].flatten()
    weights = (targets != 0).float()
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / (weights.sum() + 1e-5)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["train/out/loss"]), abs=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = FAMILIES["gpt2_ml"].tensorflow
    ours = {name: tensor.numpy() for name, tensor in exported(gradients, names.rows(model.config)).items()}
    theirs = {key.removeprefix("train/grad/"): arrays[key] for key in arrays.files if key.startswith("train/grad/")}
    assert len(theirs) == 52 and set(theirs) == set(ours)
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["manual_30", "sample_0_tokens", "sample_1_tokens"])
def test_greedy_text_with_the_cache_equals_the_original(model, arrays, name):
    context = torch.from_numpy(arrays["greedy/in/context"]).long()
    theirs = arrays[f"greedy/out/{name}"]
    cache = model.new_cache(rows=len(context), capacity=theirs.shape[1])
    ids, new = context, context
    with torch.no_grad():
        while ids.shape[1] < theirs.shape[1]:
            new = model(new, cache=cache, logits="last").logits.argmax(-1)
            ids = torch.cat((ids, new), 1)
    np.testing.assert_array_equal(ids, theirs)
