"""The kernels of attention that training on a CPU uses: causal blocks of rows, and float32 for short rows."""

import pytest
import torch
from torch.nn import functional as F

from hanmo.cores import SHORT_ATTENTION
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.nn.attention import Attention, AttentionInputs, _blocks_are_faster, _causal_in_blocks


@pytest.mark.parametrize("count", [1, 7, 16, 50])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_and_gradients_equal_the_fused_kernel(count, scale):
    torch.manual_seed(count)
    given = [torch.randn(2, 3, count, 8, requires_grad=True) for _ in range(3)]
    ours = _causal_in_blocks(*given, scale, block=16)
    theirs = F.scaled_dot_product_attention(*given, is_causal=True, scale=scale)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    weight = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad((ours * weight).sum(), given),
        torch.autograd.grad((theirs * weight).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_without_compiling_the_fused_kernel_is_taken():
    assert not _blocks_are_faster(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True))


@pytest.mark.parametrize("length", [SHORT_ATTENTION, SHORT_ATTENTION + 1])
@pytest.mark.parametrize("autocast", [False, True])
def test_short_rows_in_bfloat16_train_in_float32(length, autocast):
    config = gpt2_ml_config(vocab_size=8, num_layers=1, hidden_size=32, positions=512, head_dim=16).main
    attention, generator = Attention(config), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 16, generator=generator).to(torch.bfloat16).requires_grad_() for _ in range(3))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = attention._fused(q, k, v, AttentionInputs(causal=True))
    found, expected = ((result, *torch.autograd.grad(result.float().sum(), (q, k, v))) for result in (ours, exact))
    same = [torch.equal(*pair) for pair in zip(found, expected, strict=True)]
    assert all(same) == (length <= SHORT_ATTENTION)
