"""Schedules against their definitions and torch's scheduler."""

import math
from functools import partial

import pytest
import torch

from hanmo.errors import ConfigError
from hanmo.training.optim.schedule import piecewise_linear, relative_step, warmup_cosine, warmup_linear


def test_piecewise_linear_rises_from_zero_and_stays_after_its_last_point():
    points = {1000: 1, 2000: 0.1}
    found = [piecewise_linear(step, points) for step in (0, 250, 1000, 1500, 2000, 10**9)]
    assert found == pytest.approx([0, 0.25, 1, 0.55, 0.1, 0.1])


def test_piecewise_linear_may_begin_elsewhere_than_zero():
    assert [piecewise_linear(step, {4: 2.0, 0: 1.0}) for step in (0, 1, 4, 5)] == pytest.approx([1, 1.25, 2, 2])
    assert piecewise_linear(7, {0: 1}) == 1


@pytest.mark.parametrize("points", [{}, {-1: 1.0, 5: 0.0}])
def test_piecewise_linear_refuses_points_that_are_none_or_before_zero(points):
    with pytest.raises(ConfigError, match=rf"schedule points are {points}; expected at least one"):
        piecewise_linear(0, points)


def test_warmup_linear_is_the_originals_formula():
    found = [warmup_linear(step, warmup=3, total=10) for step in range(12)]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0])
    assert warmup_linear(0, warmup=0, total=10) == 1


def test_warmup_cosine_rises_to_one_and_sinks_to_its_floor():
    schedule = partial(warmup_cosine, warmup=2, total=10, floor=0.2)
    assert [schedule(step) for step in (0, 1, 2, 6, 10, 99)] == pytest.approx([0, 0.5, 1, 0.6, 0.2, 0.2])
    assert schedule(4) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert warmup_cosine(5, warmup=5, total=5) == 1  # nothing left to sink along


@pytest.mark.parametrize("schedule", [warmup_linear, warmup_cosine])
@pytest.mark.parametrize(("warmup", "total"), [(11, 10), (-1, 10), (0, 0)])
def test_impossible_lengths_are_refused(schedule, warmup, total):
    with pytest.raises(ConfigError, match=f"warmup={warmup}, total={total}; expected 0 <= warmup <= total"):
        schedule(0, warmup=warmup, total=total)


def test_impossible_floor_is_refused():
    with pytest.raises(ConfigError, match=r"floor of the cosine schedule is 1\.5; expected 0 to 1"):
        warmup_cosine(0, warmup=0, total=1, floor=1.5)


def test_relative_step_is_constant_until_ten_thousand_steps():
    assert relative_step(0) == relative_step(9_998) == 0.01
    assert relative_step(39_999) == pytest.approx(0.005)


def test_schedules_go_into_torchs_scheduler():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=4.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_linear, warmup=2, total=4))
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 2, 2, 1, 0])
