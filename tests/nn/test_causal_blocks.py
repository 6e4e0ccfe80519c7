"""Causal attention in blocks of rows, which compiled training on a CPU takes: what the fused kernel gives."""

import pytest
import torch
from torch.nn import functional as F

from hanmo.nn.attention import _blocks_are_faster, _causal_in_blocks


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
