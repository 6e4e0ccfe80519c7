"""A product by oneDNN is what torch's own is; where there is a gradient, or another dtype, it is torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hanmo.nn import linear as module
from hanmo.nn.linear import Linear, linear

WIDE = 768


@pytest.fixture
def calls(monkeypatch):
    """Count how often oneDNN is called; skips where torch has none."""
    if module._ONEDNN is None:
        pytest.skip("this torch has no oneDNN")
    found, onednn = [], module._ONEDNN
    monkeypatch.setattr(module, "_ONEDNN", lambda *given: found.append(given) or onednn(*given))
    return found


def weights(how):
    torch.manual_seed(0)
    if how == "transposed":
        return nn.Parameter(torch.randn(WIDE, WIDE).T)
    if how == "part":  # as GPT-2 keeps query, key and value side by side
        return nn.Parameter(torch.randn(WIDE, 3 * WIDE).chunk(3, 1)[1].T)
    return nn.Parameter(torch.randn(WIDE, WIDE))


@pytest.mark.parametrize("how", ["own", "transposed", "part"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3,)])
@pytest.mark.parametrize("biased", [True, False])
def test_large_products_go_to_onednn_and_equal_torch(calls, how, shape, biased):
    weight, bias = weights(how), torch.randn(WIDE) if biased else None
    x = torch.randn(*shape, WIDE)
    with torch.inference_mode():
        result = linear(x, weight, bias)
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert len(calls) == 1 and result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-4)


def test_a_slice_of_a_larger_input_is_read_as_it_lies(calls):
    weight, x = weights("own"), torch.randn(2, 5, WIDE)
    with torch.no_grad():
        torch.testing.assert_close(linear(x[:, -1:], weight), linear(x, weight)[:, -1:], rtol=0, atol=2e-4)
    assert len(calls) == 2


def test_products_with_a_gradient_or_of_another_kind_are_left_to_torch(calls):
    layer, x = Linear(WIDE, WIDE), torch.randn(1, WIDE)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        small = Linear(8, 8)
        assert torch.equal(small(x[:, :8]), F.linear(x[:, :8], small.weight, small.bias))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        half = layer.bfloat16()
        assert half(x.bfloat16()).dtype == torch.bfloat16
    assert not calls


def test_where_torch_has_no_onednn_torch_multiplies(monkeypatch):
    monkeypatch.setattr(module, "_ONEDNN", None)
    layer, x = Linear(WIDE, WIDE), torch.randn(1, WIDE)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
