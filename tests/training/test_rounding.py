"""Stochastic rounding: unbiased, repeatable, and able to learn where plain bfloat16 does not move."""

import pytest
import torch

from hanmo.training.optim.adafactor import AdaFactor
from hanmo.training.optim.adafactor_update import noise_key, round_stochastically


def key_tensor(*parts):
    return torch.tensor(noise_key(*parts), dtype=torch.int32)


def rounded(values, *key):
    target = torch.empty_like(values, dtype=torch.bfloat16)
    round_stochastically(target, values.clone(), key=key_tensor(*key))
    return target


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, 0.99999, -1e-5, 1e30])
def test_rounding_goes_to_a_neighbour_and_is_unbiased(value):
    found = rounded(torch.full((200_000,), value), 1).double()
    near = torch.tensor(value).bfloat16().item()
    assert len(found.unique()) == 2 and near in found.unique()
    low, high = found.min().item(), found.max().item()
    share = (torch.tensor(value).item() - low) / (high - low)
    error = (share * (1 - share) / 200_000) ** 0.5 * (high - low)  # standard error of the mean
    assert low < value < high
    assert abs(found.mean().item() - torch.tensor(value).item()) < 5 * error


def test_chance_of_going_up_is_right_for_every_fraction():
    """65,536 float32 values lie between 1 and the next bfloat16; each is rounded 16 times."""
    values = (torch.arange(1 << 16, dtype=torch.int32) + 0x3F800000).view(torch.float32)
    ups = sum((rounded(values, draw) > 1).float() for draw in range(16)) / 16
    shares = ups.view(32, -1).mean(1)
    expected = (torch.arange(32) + 0.5) / 32
    assert (shares - expected).abs().max() < 5 * (0.25 / (16 * 2048)) ** 0.5


def test_values_of_bfloat16_stay_what_they_are():
    values = torch.cat([torch.randn(10_000).bfloat16().float(), torch.tensor([0.0, -0.0, torch.inf, -torch.inf])])
    for draw in range(5):
        found = rounded(values, draw)
        assert torch.equal(found.view(torch.int16), values.bfloat16().view(torch.int16))
    assert rounded(torch.tensor([torch.nan]), 0).isnan().all()


def test_noise_belongs_to_its_key_alone():
    values = torch.rand(1001)
    assert torch.equal(rounded(values, 1, 2, 3), rounded(values, 1, 2, 3))
    assert not torch.equal(rounded(values, 1, 2, 3), rounded(values, 1, 2, 4))
    assert not torch.equal(rounded(values, 1, 2, 3), rounded(values, 12, 3))


def test_transposed_values_are_rounded_in_place_order():
    values = torch.rand(7, 5).T
    target = torch.empty(7, 5, dtype=torch.bfloat16).T
    round_stochastically(target, values.clone(), key=key_tensor(0))
    torch.testing.assert_close(target.float(), values, rtol=1 / 128, atol=0)


def test_bfloat16_learns_with_it_where_plain_bfloat16_stands_still():
    """Steps of 1e-3 on weights of 1, whose neighbour in bfloat16 is 1/256 below: plain rounding undoes each."""
    losses = {}
    for kind in ("plain", "stochastic"):
        weight = torch.nn.Parameter(torch.ones(64, 32, dtype=torch.bfloat16))
        exact = torch.nn.Parameter(torch.ones(64, 32))
        optimizer = AdaFactor([weight if kind == "stochastic" else exact], lr=1e-3)
        for _ in range(300):
            used = weight if kind == "stochastic" else exact
            loss = (used.float() - 0.75).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if kind == "plain":
                with torch.no_grad():
                    exact.copy_(exact.bfloat16())
        losses[kind] = loss.item()
    assert losses["plain"] == pytest.approx(0.25**2)
    assert losses["stochastic"] < 1e-3
