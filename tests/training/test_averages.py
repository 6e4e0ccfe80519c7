"""Moving average, lookahead and accumulation against their formulas."""

import numpy as np
import pytest
import torch

from hanmo.errors import ConfigError, TensorMismatch
from hanmo.training.optim.averages import Accumulation, ExponentialMovingAverage, Lookahead


def walk(data, count=10):
    """A golden trajectory to average over: the parameter after each of ten steps."""
    with np.load(data / "goldens" / "adafactor.npz") as file:
        return [torch.tensor(value) for value in file["default/m2d"][:count]]


def test_moving_average_is_bert4keras_formula_with_bias_correction(data):
    steps = walk(data)
    parameter = torch.nn.Parameter(steps[0].clone())
    average = ExponentialMovingAverage([parameter], momentum=0.9)
    slot = torch.zeros_like(steps[0], dtype=torch.float64)
    for number, value in enumerate(steps, 1):
        parameter.data.copy_(value)
        average.update()
        slot = 0.9 * slot + 0.1 * value  # the original's slot, divided when it is applied
        with average.applied():
            torch.testing.assert_close(parameter.detach().double(), slot / (1 - 0.9**number), rtol=0, atol=1e-6)
        assert torch.equal(parameter, value)


def test_own_values_come_back_even_after_an_error():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    average = ExponentialMovingAverage([parameter], momentum=0.5, device="cpu")
    average.update()
    parameter.data.add_(8)
    with pytest.raises(KeyError, match="stop"), average.applied():
        assert parameter.tolist() == [1.0, 2.0]
        raise KeyError("stop")
    assert parameter.tolist() == [9.0, 10.0]


def test_moving_average_of_bfloat16_is_kept_in_float32():
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = ExponentialMovingAverage([parameter], momentum=0.999)
    average.update()
    parameter.data.fill_(2)
    average.update()
    assert average.state_dict()["averages"][0].dtype == torch.float32
    assert average.state_dict()["averages"][0].item() == pytest.approx((0.999 + 2) / 1.999)


def test_moving_average_goes_on_after_loading(data):
    steps = walk(data)
    parameter = torch.nn.Parameter(steps[0].clone())
    whole, before = (ExponentialMovingAverage([parameter], momentum=0.9) for _ in range(2))
    for number, value in enumerate(steps):
        parameter.data.copy_(value)
        whole.update()
        if number == 4:
            after = ExponentialMovingAverage([parameter], momentum=0.9)
            after.load_state_dict(before.state_dict())
            before = after
        before.update()
    assert torch.equal(before.state_dict()["averages"][0], whole.state_dict()["averages"][0])


def test_moving_average_without_updates_is_refused():
    average = ExponentialMovingAverage([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ConfigError, match="has 0 updates; call update"), average.applied():
        pass


@pytest.mark.parametrize("momentum", [1.0, -0.1])
def test_moving_average_refuses_a_momentum_out_of_range(momentum):
    with pytest.raises(ConfigError, match=f"momentum of the moving average is {momentum}"):
        ExponentialMovingAverage([], momentum=momentum)


def test_lookahead_moves_part_of_the_way_at_every_kth_step(data):
    steps = walk(data)
    start = steps[0] - 1
    parameter = torch.nn.Parameter(start.clone())
    lookahead = Lookahead([parameter], every=3, share=0.25)
    slow, fast, moved = start.double(), start.double(), []
    for number, value in enumerate(steps, 1):
        stride = value - steps[number - 2] if number > 1 else value - start
        fast = fast + stride
        parameter.data.add_(stride)
        moved.append(lookahead.update())
        if number % 3 == 0:
            slow = slow + 0.25 * (fast - slow)
            fast = slow
        torch.testing.assert_close(parameter.detach().double(), fast, rtol=0, atol=1e-6)
    assert [number for number, did in enumerate(moved, 1) if did] == [3, 6, 9]


def test_lookahead_does_not_halve_the_weights_as_the_original_did():
    parameter = torch.nn.Parameter(torch.ones(3))
    lookahead = Lookahead([parameter], every=1, share=0.5)
    lookahead.update()
    assert torch.equal(parameter, torch.ones(3))


def test_lookahead_goes_on_after_loading():
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    whole, resumed = Lookahead([first], every=2), Lookahead([second], every=2)
    for number in range(5):
        if number == 3:
            saved = resumed.state_dict()
            resumed = Lookahead([second], every=2)
            resumed.load_state_dict(saved)
        for parameter, lookahead in ((first, whole), (second, resumed)):
            parameter.data.mul_(1.5)
            lookahead.update()
    assert torch.equal(first, second) and first[0] != 1.5**5


@pytest.mark.parametrize(("every", "share"), [(0, 0.5), (5, 0.0), (5, 1.5)])
def test_lookahead_refuses_settings_out_of_range(every, share):
    with pytest.raises(ConfigError, match=f"every={every}, share={share}; expected every >= 1"):
        Lookahead([], every=every, share=share)


@pytest.mark.parametrize("make", [ExponentialMovingAverage, Lookahead])
def test_state_of_another_model_is_refused_with_the_shapes(make):
    saved = make([torch.nn.Parameter(torch.ones(3))]).state_dict()
    with pytest.raises(TensorMismatch, match=r"shape \(3,\) at place 0, expected \(4,\)"):
        make([torch.nn.Parameter(torch.ones(4))]).load_state_dict(saved)
    with pytest.raises(TensorMismatch, match="1 tensors, expected 2"):
        make([torch.nn.Parameter(torch.ones(3)) for _ in range(2)]).load_state_dict(saved)


def test_accumulated_passes_equal_one_large_batch():
    torch.manual_seed(0)
    start, inputs = torch.randn(4), torch.randn(5, 6, 4)
    results = []
    for every in (1, 3):
        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        accumulation = Accumulation(optimizer, every=every)
        did = []
        for batch in inputs:
            for part in batch.chunk(every):
                (part @ weight).square().mean().backward()
                did.append(accumulation.step())
        assert did == ([False] * (every - 1) + [True]) * 5
        assert weight.grad is None
        results.append(weight.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_accumulation_over_nothing_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ConfigError, match="accumulation over 0 passes; expected 1 or more"):
        Accumulation(optimizer, every=0)
