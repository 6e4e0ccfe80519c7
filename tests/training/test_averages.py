"""The moving average against its formula."""

import numpy as np
import pytest
import torch

from hanmo.errors import ConfigError, TensorMismatch
from hanmo.training.optim.averages import ExponentialMovingAverage


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


def test_state_of_another_model_is_refused_with_the_shapes():
    saved = ExponentialMovingAverage([torch.nn.Parameter(torch.ones(3))]).state_dict()
    with pytest.raises(TensorMismatch, match=r"shape \(3,\) at place 0, expected \(4,\)"):
        ExponentialMovingAverage([torch.nn.Parameter(torch.ones(4))]).load_state_dict(saved)
    with pytest.raises(TensorMismatch, match="1 tensors, expected 2"):
        ExponentialMovingAverage([torch.nn.Parameter(torch.ones(3)) for _ in range(2)]).load_state_dict(saved)
